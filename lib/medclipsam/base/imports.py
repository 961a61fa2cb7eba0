"""Modules of other packages without all else that their packages import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def import_part(package: str, part: str) -> ModuleType:
    """Import a module of a package without running the package's own `__init__`.

    `import segment_anything` brings torchvision for its predictor, and `import open_clip` also transformers and timm:
    most of the seconds before a first mask. Their networks and tokenizer need torch alone. The module gets its usual
    name, so that a later import of the whole package finds it and its classes stay the same.

    Parameters
    ----------
    package : str
        A package at the top level.
    part : str
        Name of a module in it, which imports nothing from the package's `__init__`.

    Raises
    ------
    ModuleNotFoundError
        If there is no such package or module.
    """
    name = f"{package}.{part}"
    if package in sys.modules or name in sys.modules:
        return importlib.import_module(name)
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    # stands in for the package while its module is found, and is never run
    sys.modules[package] = importlib.util.module_from_spec(found)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]
