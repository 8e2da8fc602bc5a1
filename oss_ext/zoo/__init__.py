"""The bundled models: ``load("photo32")`` gives a trained network that a schedule can be searched for at once.

``load("photo32_vp")`` is one of another kind, ``features()`` a classifier for distances between sets of their pictures.
"""

from oss_ext.zoo.model import ZooModel, to_image
from oss_ext.zoo.weights import features, load, names

__all__ = ["ZooModel", "features", "load", "names", "to_image"]
