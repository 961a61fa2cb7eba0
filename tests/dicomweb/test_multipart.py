"""Multipart answers, cut anywhere."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.dicomweb.multipart import IncompleteError, boundary_of, write_parts

BOUNDARY = b"cut"


def _message(bodies: list[bytes], headers: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    parts = [b"--cut\r\n" + headers + b"\r\n" + body + b"\r\n" for body in bodies]
    return b"".join(parts) + b"--cut--\r\n"


def _pieces(message: bytes, size: int) -> list[bytes]:
    return [message[start : start + size] for start in range(0, len(message), size)]


# bytes of which boundaries are made, so that some nearly are one
BODIES = st.lists(st.lists(st.sampled_from([b"\r\n", b"--", b"cut", b"\r", b"x", b"\0"]), max_size=8).map(b"".join))


@settings(max_examples=60, deadline=None)
@given(bodies=BODIES, size=st.integers(1, 40), plain=st.booleans())
def test_parts_come_back_however_the_answer_is_cut(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], size: int, plain: bool
) -> None:
    bodies = [body.replace(b"--cut", b"") for body in bodies]
    message = b"preamble\r\n" + _message(bodies, b"" if plain else b"Content-Type: application/dicom\r\nX: y\r\n")
    files = write_parts(_pieces(message, size), BOUNDARY, tmp_path_factory.mktemp("parts"))
    assert [file.read_bytes() for file in files] == bodies


@pytest.mark.parametrize("kept", [0, 3, 10, 50, 70])
def test_an_answer_that_ends_too_soon_is_told(tmp_path: Path, kept: int) -> None:
    message = _message([b"a" * 30])
    with pytest.raises(IncompleteError):
        write_parts([message[:kept]], BOUNDARY, tmp_path)


def test_what_is_no_multipart_answer_is_told(tmp_path: Path) -> None:
    for content in (
        b"<html></html>",
        b"--cut",
        b"--cut nonsense\r\n\r\nbody\r\n--cut--",
        b"--cut\r\nX: " + b"y" * 100_000,
    ):
        with pytest.raises(IncompleteError):
            write_parts([content], BOUNDARY, tmp_path)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('multipart/related; boundary="a b:c"; type="application/dicom"', b"a b:c"),
        ("application/dicom", None),
        ("", None),
    ],
)
def test_the_boundary_is_read_from_the_content_type(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
