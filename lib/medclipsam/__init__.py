"""Text-driven segmentation of medical images: MedCLIP-SAMv2 as a library and a MONAI Label server app.

The names below are the public interface. Each is imported when it is first used, so that `import medclipsam` takes
no time.

Examples
--------
>>> from medclipsam import MedicalImage, ZeroShot, write_mask
>>> from medclipsam.demo.phantoms import make_phantom
>>> image = MedicalImage.from_array(make_phantom("US", 1, pathology=True).image, modality="US")
>>> model = ZeroShot.load()
>>> result = model.segment(image, "breast tumour")
>>> result.label_names
{'breast tumour': 1}
>>> write_mask(result.labels, image, "mask.nii.gz").name
'mask.nii.gz'

In a notebook, `result.plot()` shows the mask on the image.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclipsam.base.errors import MedClipSamError
    from medclipsam.base.options import ZeroShotOptions
    from medclipsam.imaging.image import MedicalImage
    from medclipsam.imaging.masks import read_mask
    from medclipsam.imaging.overlay import draw_overlay
    from medclipsam.imaging.read import read_image
    from medclipsam.imaging.write import write_mask
    from medclipsam.measurements.measure import Measurements, measure
    from medclipsam.pipeline.refine import Clicks, RefineResult, refine
    from medclipsam.pipeline.zero_shot import ZeroShot, ZeroShotResult
    from medclipsam.targets.target import Target, TargetSet

__all__ = [
    "Clicks",
    "Measurements",
    "MedClipSamError",
    "MedicalImage",
    "RefineResult",
    "Target",
    "TargetSet",
    "ZeroShot",
    "ZeroShotOptions",
    "ZeroShotResult",
    "__version__",
    "draw_overlay",
    "measure",
    "read_image",
    "read_mask",
    "refine",
    "write_mask",
]

try:
    __version__ = version("medclipsam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_MODULES = {
    **dict.fromkeys(("Clicks", "RefineResult", "refine"), "medclipsam.pipeline.refine"),
    **dict.fromkeys(("MedicalImage", "draw_overlay", "read_image", "read_mask", "write_mask"), "medclipsam.imaging"),
    **dict.fromkeys(("Measurements", "measure"), "medclipsam.measurements"),
    **dict.fromkeys(("Target", "TargetSet"), "medclipsam.targets"),
    **dict.fromkeys(("ZeroShot", "ZeroShotResult"), "medclipsam.pipeline.zero_shot"),
    "MedClipSamError": "medclipsam.base.errors",
    "ZeroShotOptions": "medclipsam.base.options",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
