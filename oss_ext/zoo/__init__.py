"""The bundled model: ``load("photo32")`` gives a trained network that a schedule can be searched for at once."""

from oss_ext.zoo.photo32 import ZooModel, load, names, to_image

__all__ = ["ZooModel", "load", "names", "to_image"]
