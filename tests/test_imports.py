"""Modules of other packages without what their packages import."""

import json
import subprocess
import sys

import pytest

from medclipsam.base.imports import import_part

PART_FIRST = """
import json, sys
from medclipsam.base.imports import import_part
part = import_part("segment_anything", "build_sam")
before = ["torchvision" in sys.modules, "segment_anything" in sys.modules]
import segment_anything
whole = segment_anything.sam_model_registry is part.sam_model_registry
print(json.dumps([*before, whole, segment_anything.SamPredictor is not None]))
"""
LOADED = """
import json, sys
from medclipsam.pipeline.zero_shot import ZeroShot
ZeroShot.load("default")
print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))
"""
# What `import open_clip` and `import segment_anything` bring, and what torch imports for its compiler.
HEAVY = ["torchvision", "transformers", "timm", "sympy", "torch._dynamo", "monai"]


def run(code: str, *arguments: str) -> list[object]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_part_comes_without_its_package_and_stays_the_same_when_that_is_imported() -> None:
    assert run(PART_FIRST) == [False, False, True, True]


def test_a_package_that_is_imported_already_is_used() -> None:
    import segment_anything

    assert import_part("segment_anything", "build_sam").sam_model_registry is segment_anything.sam_model_registry


def test_what_is_not_there_is_named() -> None:
    for package, part in (("no_such_package", "part"), ("segment_anything", "no_such_part")):
        with pytest.raises(ModuleNotFoundError) as caught:
            import_part(package, part)
        assert caught.value.name in (package, f"{package}.{part}")
    assert "no_such_package" not in sys.modules


def test_the_default_pair_is_loaded_without_what_it_does_not_use() -> None:
    assert run(LOADED, *HEAVY) == []
