"""Labels that leave and come in: sets of images and labels as nnU-Net, COCO, NIfTI, BIDS, DICOM SEG and RTSTRUCT."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclipsam.exchange.exporter import Exported, export_labels
    from medclipsam.exchange.importer import ImportedCase, LabelStore, import_labels
    from medclipsam.exchange.options import FORMATS, ExportOptions, Format, ImportOptions

__all__ = [
    "FORMATS",
    "ExportOptions",
    "Exported",
    "Format",
    "ImportOptions",
    "ImportedCase",
    "LabelStore",
    "export_labels",
    "import_labels",
]

# Imported when they are used: the options are read for the help of the command line, which imports no torch.
_MODULES = {
    **dict.fromkeys(("Exported", "export_labels"), "exporter"),
    **dict.fromkeys(("ImportedCase", "LabelStore", "import_labels"), "importer"),
    **dict.fromkeys(("FORMATS", "ExportOptions", "Format", "ImportOptions"), "options"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
