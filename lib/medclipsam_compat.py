"""A stand-in for one module that pydicom 3 removed and MONAI Label 0.8.5 still needs.

MONAI Label imports pydicom-seg 0.4.1, which imports `pydicom._storage_sopclass_uids`; pydicom 3 no longer has it, and
the highdicom releases that write DICOM SEG for plain radiographs and ultrasound need pydicom 3. `medclipsam.server`
imports this module before MONAI Label. The stock command `monailabel start_server` imports pydicom-seg before it reads
an app, so that for it the finder below is put in place when the interpreter starts, by the `.pth` file that is
installed beside this module.

Every interpreter of the environment imports this module: it imports nothing but `sys` until it is asked.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

REMOVED_MODULE = "pydicom._storage_sopclass_uids"


class RemovedPydicomModule:
    """Meta-path finder and loader of `pydicom._storage_sopclass_uids`; it answers for no other name."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the stand-in's spec for the removed module and None for every other name."""
        if name != REMOVED_MODULE:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, cls, origin=__file__)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave the module's creation to the import system."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Fill in the one name that pydicom-seg takes from the module."""
        from pydicom.uid import SegmentationStorage

        module.SegmentationStorage = SegmentationStorage  # type: ignore[attr-defined]


def install() -> None:
    """Put the finder last in line, once: where pydicom still has the module, pydicom's own is found first."""
    if RemovedPydicomModule not in sys.meta_path:
        sys.meta_path.append(RemovedPydicomModule)


install()
