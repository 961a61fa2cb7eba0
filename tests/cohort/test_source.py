"""Studies of folders and lists, as they are found and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medclipsam.base.errors import InputError, UpstreamError
from medclipsam.cohort.source import FolderSource, ManifestSource, PacsSource
from medclipsam.demo.dicom import phantom_series
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.imaging import read_image
from medclipsam.studies.find import find_images


def test_a_folder_is_listed_as_everywhere_else(write_studies: Callable[..., Path]) -> None:
    folder = write_studies(5)
    source = FolderSource(folder)
    studies = list(source.studies())
    assert [study.study for study in studies] == sorted(image.image_id for image in find_images(folder))
    assert len({study.digest for study in studies}) == 5
    with source.fetched(studies[2]) as files:
        np.testing.assert_array_equal(read_image(files[0].path).plane(0), read_image(folder / "im0002.png").plane(0))


def test_a_damaged_file_is_not_listed_and_told(write_studies: Callable[..., Path]) -> None:
    folder = write_studies(1)
    (folder / "bad.png").write_bytes((folder / "im0000.png").read_bytes()[:60])
    source = FolderSource(folder)
    assert [study.study for study in source.studies()] == ["im0000"]
    assert list(source.faults) == ["bad.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_list_is_read(write_studies: Callable[..., Path], tmp_path: Path, suffix: str) -> None:
    write_studies(3)
    file = tmp_path / f"list{suffix}"
    columns = {
        "image": ["studies/im0000.png", "studies/im0002.png"],
        "text": ["heart", None],
        "site": ["x", "y"],
        "patient": ["007", "8"],
    }
    if suffix == ".csv":
        rows = ["image,text,site,patient", "studies/im0000.png,heart,x,007", "studies/im0002.png,,y,8"]
        file.write_text("\n".join(rows) + "\n")
    else:
        pq.write_table(pa.table(columns), file)
    source = ManifestSource(file)
    studies = list(source.studies())
    assert [(each.study, each.text, each.patient) for each in studies] == [
        ("studies_im0000", "heart", "007"),
        ("studies_im0002", "", "8"),
    ]
    with source.fetched(studies[1]) as files:
        assert [each.path for each in files] == [tmp_path / "studies" / "im0002.png"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("name\na\n", "image"),
        ("image,id\na.png,x\nb.png,x\n", "'x'"),
        ("image,text\n,heart\n", "Row 1"),
        ("study_uid,series_uid\n1.2,1.2.3\n", "--pacs"),
        ("", "list of studies"),
    ],
)
def test_a_list_that_names_no_studies_is_refused(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=named):
        list(ManifestSource(file).studies())


def test_a_uid_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("study_uid,series_uid\n1.2,../x\n")
    with pytest.raises(InputError, match="not a UID"):
        list(ManifestSource(file, PacsSource("http://127.0.0.1:9", PacsOptions())).studies())


class Away(PacsSource):
    """A server that answers small searches or not."""

    answering = False

    def answers(self) -> bool:
        return self.answering


def test_a_study_waits_for_a_server_that_is_away_and_not_for_one_that_answers() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    source = Away("http://127.0.0.1:9", PacsOptions(), patience=600, clock=lambda: now[0], sleep=sleep)
    tried: list[float] = []

    def attempt() -> str:
        tried.append(now[0])
        if now[0] < 60:
            raise UpstreamError("away")
        return "here"

    assert source.patiently(attempt) == "here"
    assert 60 <= now[0] < 90
    with pytest.raises(UpstreamError):
        source.patiently(lambda: (_ for _ in ()).throw(UpstreamError("never").as_permanent()))
    began = now[0] = 0.0
    with pytest.raises(UpstreamError):
        source.patiently(lambda: (_ for _ in ()).throw(UpstreamError("away")))
    assert 580 <= now[0] - began <= 600
    source.answering, now[0] = True, 0.0
    with pytest.raises(UpstreamError):
        source.patiently(lambda: (_ for _ in ()).throw(UpstreamError("this series alone")))
    assert now[0] < 10


def test_a_series_that_shares_its_folder_is_read_whole(tmp_path: Path) -> None:
    volumes = [each for each in phantom_series(1, size=64, n_planes=4) if len(each.files) > 1]
    for volume in volumes:
        for number, content in enumerate(volume.contents()):
            (tmp_path / f"{volume.series_uid}-{number}.dcm").write_bytes(content)
    source = FolderSource(tmp_path)
    studies = {study.study: study for study in source.studies()}
    assert studies.keys() == {volume.series_uid for volume in volumes}
    assert len(volumes) > 1
    for study in studies.values():
        with source.fetched(study) as files:
            place = files[0].path
            assert read_image(place).n_planes == 4
        assert not place.exists()
