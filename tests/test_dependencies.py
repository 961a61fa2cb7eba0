"""What the library imports is what pyproject.toml declares, and the locked files hold it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from medclipsam.base.extras import EXTRA_OF

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {canonicalize_name(Requirement(text).name): Requirement(text) for text in PROJECT["dependencies"]}
EXTRAS = {
    extra: {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}
    for extra, texts in PROJECT["optional-dependencies"].items()
}
RUNTIME_EXTRAS = {extra: found for extra, found in EXTRAS.items() if extra not in ("test", "docs")}
OWN = {"medclipsam", "medclipsam_compat"}


def imported() -> Iterator[tuple[str, Path]]:
    """Yield each top-level module that a file of the library or the app imports."""
    for file in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OWN:
                    yield top, file.relative_to(ROOT)


MODULES: dict[str, set[str]] = {}
for _module, _file in imported():
    MODULES.setdefault(_module, set()).add(str(_file))
DISTRIBUTIONS = packages_distributions()


def distributions_of(module: str) -> set[str]:
    # torch's own module imports TensorBoard, so that the library never names it
    return {
        canonicalize_name(name)
        for name in DISTRIBUTIONS.get(module, [{"pydensecrf": "pydensecrf2"}.get(module, module)])
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_import_is_declared(module: str) -> None:
    found = distributions_of(module)
    if module in EXTRA_OF:
        assert found & RUNTIME_EXTRAS[EXTRA_OF[module]].keys(), MODULES[module]
        assert not found & CORE.keys()
    else:
        assert found & CORE.keys(), MODULES[module]


def test_the_table_of_extras_names_no_module_that_is_not_optional() -> None:
    for module, extra in EXTRA_OF.items():
        assert distributions_of(module) & RUNTIME_EXTRAS[extra].keys()


@pytest.mark.parametrize("name", ["open-clip-torch", "timm", "segment-anything", "monai", "transformers"])
def test_packages_whose_inner_parts_are_used_have_an_upper_bound(name: str) -> None:
    assert any(each.operator in ("<", "<=", "==", "~=") for each in CORE[name].specifier)


def pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.M)}


def test_the_runtime_lock_holds_what_is_declared_and_no_test_package() -> None:
    locked = pins("requirements.txt")
    wanted = dict(CORE)
    for extra, found in RUNTIME_EXTRAS.items():
        if extra != "crf":  # built from source, see requirements-crf.txt
            wanted |= found
    for name, requirement in wanted.items():
        assert name in locked, name
        assert requirement.specifier.contains(locked[name]), (name, locked[name])
    for name in ("pytest", "playwright", "mypy", "ruff", "hypothesis", "import-linter", "mkdocs", "ipykernel"):
        assert name not in locked


def test_the_test_lock_agrees_with_the_runtime_lock() -> None:
    runtime, tests = pins("requirements.txt"), pins("requirements-test.txt")
    assert {name: tests[name] for name in tests.keys() & runtime.keys()} == {
        name: runtime[name] for name in tests.keys() & runtime.keys()
    }
    for name, requirement in {**EXTRAS["test"], **EXTRAS["docs"]}.items():
        assert name in tests
        assert requirement.specifier.contains(tests[name])


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-test.txt"])
def test_every_locked_package_has_hashes(file: str) -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / file).read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(entries) == len(pins(file))
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_supported_pythons_are_classified_and_accepted_by_make() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    said = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith("Programming Language")}
    assert said == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed}
    (check,) = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "v[:2] not in" in line]
    assert {f"{a}.{b}" for a, b in re.findall(r"\((3), (\d+)\)", check)} == said


def test_no_lock_names_where_packages_come_from() -> None:
    for file in ("requirements.txt", "requirements-test.txt", "requirements-crf.txt"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
