"""The OHIF bundle inside MONAI Label has what app-config.js replaces or calls; a failure names the version.

The pages are built by MONAI Label, and their inner parts may change in any of its releases.
"""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import medclipsam.server
from medclipsam.server.monai_label.upstream import STATIC

CONFIG = (Path(medclipsam.server.__file__).parent / "viewer" / "app-config.js").read_text(encoding="utf-8")
WRAPPED = sorted(set(re.findall(r"mend\(\s*(?:services\.)?(\w+),\s*'(\w+)'", CONFIG)))
CALLED = sorted(set(re.findall(r"\bservices\.(\w+)\.(\w+)", CONFIG)))
EXPECTED = "0.8.5"


@pytest.fixture(scope="module")
def bundle() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted((STATIC / "ohif").glob("*.js")))


def named() -> str:
    (app,) = (STATIC / "ohif").glob("app.bundle.*.js")
    return f"{app.name} of monailabel {version('monailabel')} (written for {EXPECTED})"


def test_the_names_are_found_in_the_configuration() -> None:
    assert len(WRAPPED) >= 6
    assert ("displaySetService", "makeDisplaySetForInstances") in WRAPPED
    assert {service for service, _ in CALLED} >= {"segmentationService", "cornerstoneViewportService"}


@pytest.mark.parametrize(("owner", "method"), WRAPPED)
def test_each_wrapped_method_is_defined(bundle: str, owner: str, method: str) -> None:
    # as a method of a class, or as a property that holds a function
    defined = re.search(rf"(?<![\w.])(?:async )?{method}\s*\(|\bthis\.{method}\s*=|\b{method}:", bundle)
    assert defined, f"{owner}.{method} is not in {named()}"


@pytest.mark.parametrize(("service", "name"), CALLED)
def test_each_service_has_what_is_called(bundle: str, service: str, name: str) -> None:
    for word in (service, name):
        assert re.search(rf"\b{word}\b", bundle), f"{service}.{name} is not in {named()}"


@pytest.mark.parametrize(
    "word",
    [
        "matchImagesForOverlay",
        "createAndCacheDerivedLabelmapImages",
        "getAnnotationManager",
        "ProbeMONAILabel",
        "MONAILABEL_SERVER_URL",
        "VIEWPORT_DATA_CHANGED",
        "STACK_NEW_IMAGE",
        "buttonSections",
        "@ohif/extension-cornerstone.utilityModule.common",
    ],
)
def test_each_other_name_is_known_to_both(bundle: str, word: str) -> None:
    assert word in CONFIG
    assert word in bundle, f"{word} is not in {named()}"
