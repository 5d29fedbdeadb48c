"""Client of an MLTF gateway."""

__version__ = "0.1.0"
