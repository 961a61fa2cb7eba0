"""Labels that others have taken the place of."""

from __future__ import annotations

from pathlib import Path

import pytest

from medclipsam.server.base.errors import UnknownError
from medclipsam.server.studies.label_versions import MAX_VERSIONS, LabelVersions


@pytest.fixture
def versions(tmp_path: Path) -> LabelVersions:
    return LabelVersions(tmp_path / "labels", lambda folder: folder.mkdir(parents=True, exist_ok=True))


def test_a_version_is_the_file_and_what_was_kept_with_it(versions: LabelVersions, tmp_path: Path) -> None:
    file, new = tmp_path / "a.nii.gz", tmp_path / "new.nrrd"
    for number in (1, 2):
        file.write_bytes(b"%d" % number)
        new.write_bytes(b"new")
        versions.keep("a", "final", file, ".nii.gz", {"saved_by": "ada", "n": number}, new)
    # the same content takes the place of nothing
    new.write_bytes(b"2")
    versions.keep("a", "final", file, ".nii.gz", {}, new)
    kept = versions.of("a", "final")
    assert [(each.number, each.saved_by, each.info["n"]) for each in kept] == [(1, "ada", 1), (2, "ada", 2)]
    assert [each.path.read_bytes() for each in kept] == [b"1", b"2"]
    assert versions.get("a", "final", 2) == kept[1]
    assert versions.of("b", "final") == versions.of("a", "original") == []
    with pytest.raises(UnknownError):
        versions.get("a", "final", 3)
    versions.forget("a")
    assert versions.of("a", "final") == []


def test_nobody_pushes_out_what_others_have_saved(versions: LabelVersions, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    for number in range(3 * MAX_VERSIONS):
        file.write_bytes(b"%d" % number)
        versions.keep("a", "final", file, ".png", {"saved_by": "bob" if number > 1 else "ada"}, None)
    kept = versions.of("a", "final")
    assert [each.number for each in kept[:2]] == [1, 2]
    assert [each.number for each in kept[2:]] == list(range(2 * MAX_VERSIONS + 3, 3 * MAX_VERSIONS + 1))
    assert len(list(kept[0].path.parent.iterdir())) == 2 * MAX_VERSIONS
