"""Text-driven segmentation of medical images: MedCLIP-SAMv2 as a library and a MONAI Label server app."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medclipsam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
