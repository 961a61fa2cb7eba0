"""What `serve` refuses before it starts anything; the running server is tested in tests/e2e."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from medclipsam.base.errors import MedClipSamError
from medclipsam.server.base.workspace import Workspace
from medclipsam.server.serve import address, expire, serve, welcome


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def studies(tmp_path: Path) -> str:
    (tmp_path / "studies").mkdir()
    return str(tmp_path / "studies")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"studies": "/no/such/folder"}, "/no/such/folder"),
        ({"studies": "http://127.0.0.1:9"}, "The DICOMweb server http://127.0.0.1:9 does not answer"),
        ({"targets": ["left ear"]}, "left ear"),
        ({"conf": {"colour": "red"}}, "'colour' (given as 'red') is not known"),
        ({"conf": {"beta": "much"}}, "'beta' cannot be 'much'"),
        ({"conf": {"targets_file": "/no/such.yaml"}}, "/no/such.yaml"),
        ({"device": "gpu"}, "'device' cannot be 'gpu'"),
        ({"port": 70000}, "'port' cannot be 70000"),
        ({"host": "nonesuch.invalid"}, "nonesuch.invalid"),
    ],
)
def test_bad_arguments_are_one_sentence(wrong: dict[str, Any], sentence: str, studies: str) -> None:
    with pytest.raises(MedClipSamError) as error:
        serve(**{"studies": studies, "port": 0, **wrong})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_no_studies_folder(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("")
    with pytest.raises(MedClipSamError, match="neither a folder"):
        serve(str(tmp_path / "scan.nii.gz"), port=0)


def test_a_taken_port_is_told(studies: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MedClipSamError, match=f"Port {port} of 127.0.0.1 cannot be used"):
            serve(studies, port=port)


def test_a_refused_start_leaves_the_studies_as_they_were(studies: str) -> None:
    with pytest.raises(MedClipSamError):
        serve(studies, port=0, conf={"colour": "red"})
    assert list(Path(studies).iterdir()) == []


def test_addresses_are_ones_that_a_browser_can_open() -> None:
    assert address("0.0.0.0", 8123) == "http://127.0.0.1:8123"
    assert address("::1", 8000) == "http://[::1]:8000"
    assert address("workstation", 8000, secure=True) == "https://workstation:8000"
    assert "https://workstation:8000/ohif/" in welcome("https://workstation:8000")


def test_housekeeping_goes_on_after_an_error_in_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Instance:
        def datastore(self) -> Any:
            raise FileNotFoundError("removed at the same moment")

    with Workspace(tmp_path / "workspace") as space:
        old = space.temporary / "left"
        old.write_text("")
        os.utime(old, (1, 1))
        expire(space, Instance())  # type: ignore[arg-type]
        assert not old.exists()
        monkeypatch.setattr(Workspace, "expire", lambda self, seconds: 1 / 0)
        expire(space, Instance())  # type: ignore[arg-type]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        FileNotFoundError,
        ZeroDivisionError,
        FileNotFoundError,
    ]
