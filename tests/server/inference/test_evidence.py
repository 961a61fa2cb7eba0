"""Evidence: maps and pictures under addresses that expire."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from medclipsam.base.errors import MedClipSamError
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.zero_shot import PlaneEvidence, TargetEvidence, ZeroShotResult
from medclipsam.server.api.access import Access
from medclipsam.server.api.routes.evidence import evidence_router
from medclipsam.server.base.errors import UnknownError, status_of
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.studies.images import ImageReader


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Three planes stored against the display's order, in a geometry of their own."""
    affine = np.diag([1.0, -1.5, -4.0, 1.0])
    affine[:3, 3] = (7, 8, 9)
    voxels = np.random.default_rng(0).integers(0, 200, (30, 20, 3)).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "volume.nii.gz")
    return tmp_path / "volume.nii.gz"


def answered(image: MedicalImage) -> ZeroShotResult:
    """A result with the heart in the middle of plane 1 and nothing else."""
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[1, 5:15, 10:20] = 13
    heart, lung = TargetEvidence("heart", 13, ["heart"], True), TargetEvidence("lung", 11, ["lung"], True)
    heart.planes = [PlaneEvidence(1, 0.9, {"boxes": [[10.0, 5.0, 19.0, 14.0]], "points": [[12.0, 8.0]]}, 0.8)]
    return ZeroShotResult(labels, {"heart": 13, "lung": 11}, [heart, lung], "heart; lung", {"seed": 0}, {}, {}, {})


def kept(store: EvidenceStore, path: Path, **more: bool) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """Keep maps of the heart on planes 0 and 1."""
    image = read_image(path)
    draft = store.begin(image)
    assert draft is not None
    maps = np.random.default_rng(1).random((2, *image.plane_shape)).astype(np.float32)
    for plane, saliency in enumerate(maps):
        draft.add("heart", plane, saliency)
    return store.keep(draft, image, answered(image), path, **more), maps


def token_of(address: str) -> str:
    return address.split("/")[-2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvidenceStore:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    store = EvidenceStore(ImageReader())
    store.open("/api")
    return store


@pytest.fixture
def client(store: EvidenceStore) -> TestClient:
    app = FastAPI()
    app.state.access = Access()
    app.include_router(evidence_router(lambda: store), prefix="/api")
    app.add_exception_handler(MedClipSamError, lambda request, error: JSONResponse({}, status_of(error)))
    return TestClient(app)


def test_the_map_lies_on_the_image(store: EvidenceStore, client: TestClient, volume: Path, tmp_path: Path) -> None:
    addresses, maps = kept(store, volume)
    assert list(addresses) == ["heart"]
    answer = client.get(addresses["heart"]["saliency"])
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-store"
    (tmp_path / "map.nii.gz").write_bytes(answer.content)
    written, source = sitk.ReadImage(str(tmp_path / "map.nii.gz")), sitk.ReadImage(str(volume))
    assert written.GetPixelID() == sitk.sitkFloat32
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, part)() == pytest.approx(getattr(source, part)())
    image = read_image(volume)
    shown = image.from_native(sitk.GetArrayFromImage(written))
    # kept as float16
    assert np.abs(shown[:2] - maps).max() <= 0.0005
    assert not shown[2].any()


def test_a_single_plane_keeps_its_map_exactly(store: EvidenceStore, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "film.png")
    image = read_image(tmp_path / "film.png")
    draft = store.begin(image)
    assert draft is not None
    saliency = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    draft.add("heart", 0, saliency)
    labels = np.zeros((1, 20, 30), np.uint8)
    result = ZeroShotResult(labels, {"heart": 13}, [TargetEvidence("heart", 13, [], True)], "", {"seed": 0}, {}, {}, {})
    token = token_of(store.keep(draft, image, result, tmp_path / "film.png")["heart"]["saliency"])
    found = np.asarray(nib.load(store.file(token, "saliency.nii.gz")).dataobj)  # type: ignore[attr-defined]
    assert np.array_equal(found, saliency.T)


def test_the_picture_shows_the_plane_with_most_of_the_mask(
    store: EvidenceStore, client: TestClient, volume: Path
) -> None:
    addresses, _ = kept(store, volume)
    pictures = [client.get(addresses["heart"]["overlay"], params=more) for more in ({}, {"plane": 1}, {"plane": 0})]
    assert [answer.headers["content-type"] for answer in pictures] == ["image/png"] * 3
    assert pictures[0].content == pictures[1].content != pictures[2].content
    left, right = np.split(np.asarray(Image.open(io.BytesIO(pictures[0].content)).convert("RGB")), 2, axis=1)
    blue, orange = np.array([64, 196, 255]), np.array([255, 176, 0])
    for side in (left, right):  # the box on both
        assert (side == blue).all(-1).sum() > 100
    assert (right[: right.shape[0] - 50] == orange).all(-1).sum() > 100  # the mask's outline


def test_a_plane_without_a_map_is_refused(store: EvidenceStore, client: TestClient, volume: Path) -> None:
    addresses, _ = kept(store, volume)
    answer = client.get(addresses["heart"]["overlay"], params={"plane": 2})
    assert answer.status_code == 400


def test_addresses_cannot_be_guessed_and_files_are_private(store: EvidenceStore, volume: Path, tmp_path: Path) -> None:
    tokens = {token_of(kept(store, volume)[0]["heart"]["overlay"]) for _ in range(3)}
    assert len(tokens) == 3
    assert all(re.fullmatch(r"[\w-]{32}", token) for token in tokens)
    for token in tokens:
        for name in ("saliency.nii.gz", "overlay.png"):
            store.file(token, name)
    files = [file for file in (tmp_path / "tmp").rglob("*") if file.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {stat.S_IMODE(file.parent.stat().st_mode) for file in files} == {0o700}
    assert not any(token in str(file) for token in tokens for file in files)


@pytest.mark.parametrize("path", ["nothing/overlay.png", "nothing/saliency.nii.gz", "%2e%2e/overlay.png"])
def test_unknown_addresses_are_not_found(client: TestClient, path: str) -> None:
    assert client.get(f"/api/evidence/{path}").status_code == 404


def test_evidence_expires_by_age(volume: Path, tmp_path: Path, store: EvidenceStore) -> None:
    now = [0.0]
    store = EvidenceStore(ImageReader(), max_seconds=10, clock=lambda: now[0])
    store.open()
    addresses, _ = kept(store, volume)
    assert addresses["heart"]["expires_in"] == 10
    token = token_of(addresses["heart"]["overlay"])
    now[0] = 9.9
    folder = store.file(token, "overlay.png").parent
    now[0] = 10.0
    with pytest.raises(UnknownError, match="expired"):
        store.file(token, "overlay.png")
    assert not folder.exists()


def test_the_oldest_goes_first_where_the_space_is_used_up(store: EvidenceStore, volume: Path) -> None:
    store = EvidenceStore(ImageReader(), max_bytes=20_000)
    store.open()
    tokens = [token_of(kept(store, volume)[0]["heart"]["overlay"]) for _ in range(6)]
    there = []
    for token in tokens:
        try:
            store.file(token, "overlay.png")
            there.append(True)
        except UnknownError:
            there.append(False)
    assert there[0] is False
    assert there[-1] or there[-2]
    assert there == sorted(there)


@pytest.mark.parametrize("change", [lambda path: os.utime(path, (1, 1)), lambda path: path.unlink()])
def test_evidence_goes_with_its_image(store: EvidenceStore, volume: Path, change: Callable[[Path], None]) -> None:
    addresses, _ = kept(store, volume)
    change(volume)
    with pytest.raises(UnknownError, match="gone or has changed"):
        store.file(token_of(addresses["heart"]["overlay"]), "overlay.png")


def test_evidence_of_a_file_sent_along_outlives_it(store: EvidenceStore, volume: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent.nii.gz"
    shutil.copy(volume, sent)
    addresses, _ = kept(store, sent, temporary=True)
    sent.unlink()
    assert store.file(token_of(addresses["heart"]["overlay"]), "overlay.png").stat().st_size > 1000
    assert store.file(token_of(addresses["heart"]["saliency"]), "saliency.nii.gz").stat().st_size > 100


def test_what_failed_leaves_nothing(store: EvidenceStore, volume: Path, tmp_path: Path) -> None:
    draft = store.begin(read_image(volume))
    assert draft is not None
    draft.add("heart", 0, np.zeros((20, 30), np.float32))
    assert any(file.is_file() for file in (tmp_path / "tmp").rglob("*"))
    draft.discard()
    assert not any(file.is_file() for file in (tmp_path / "tmp").rglob("*"))


def test_a_full_disk_costs_the_evidence_and_not_the_answer(
    store: EvidenceStore, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.open", full)
    image = read_image(volume)
    draft = store.begin(image)
    assert draft is not None
    for plane in range(2):
        draft.add("heart", plane, np.zeros((20, 30), np.float32))
    monkeypatch.undo()
    assert store.keep(draft, image, answered(image), volume) == {}


def test_nothing_is_kept_where_nothing_hands_it_out(volume: Path) -> None:
    assert EvidenceStore(ImageReader()).begin(read_image(volume)) is None
