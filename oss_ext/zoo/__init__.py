"""The bundled model: ``load("photo32")`` gives a trained network that a schedule can be searched for at once."""

from oss_ext.zoo.model import ZooModel, to_image
from oss_ext.zoo.weights import load, names

__all__ = ["ZooModel", "load", "names", "to_image"]
