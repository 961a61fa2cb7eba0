"""An annotator's way over HTTP: mend a text's mask by clicks, look at its evidence, save it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK
from monailabel.client.client import MONAILabelClient
from PIL import Image

from medclipsam.targets import TargetSet

FAST = {"steps": 1, "samples": 1}


@pytest.fixture
def client(server: Any, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="annotator")


def label_map(file: str | Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum())


def test_a_text_mask_is_mended_with_clicks(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    lungs = TargetSet.load().get("lungs x-ray").label
    file, _ = client.infer("lungs_x_ray", "film", {})
    before = label_map(file)
    truth = server.masks["film"]["lungs"][0]
    # two clicks that a text mask cannot have followed: a corner of the film, and the middle of a lung
    row, column = np.argwhere(truth & (before == lungs))[truth.sum() // 3]
    clicks = {"lungs x-ray": [[3, 3, 0]], "background": [[int(column), int(row), 0]]}
    file, params = client.infer("refine", "film", clicks)
    after = label_map(file)
    assert after[3, 3] == lungs
    assert after[row, column] == 0
    assert params["present_mask"] == "last"
    assert params["label_names"] == {"lungs x-ray": lungs}
    near = np.zeros(truth.shape, bool)
    near[: truth.shape[0] // 4, : truth.shape[1] // 4] = True
    rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]
    near |= np.hypot(rows - row, columns - column) < 0.25 * max(truth.shape)
    assert np.array_equal(after[~near], before[~near])

    # the mask that is sent along goes before the last one: what the clicks did is not in it
    present = SimpleITK.GetImageFromArray(before)
    present.CopyInformation(SimpleITK.ReadImage(file))
    SimpleITK.WriteImage(present, str(tmp_path / "present.nii.gz"))
    again = {"target": "lungs x-ray", "foreground": [[int(column), int(row)]]}
    file, params = client.infer("refine", "film", again, label_in=str(tmp_path / "present.nii.gz"))
    assert params["present_mask"] == "sent"
    assert np.array_equal(label_map(file), before)


def test_evidence_can_be_looked_at(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    _, params = client.infer("text_prompt", "radiograph", {"text": "lungs x-ray; breast tumour", **FAST})
    lungs, tumour = params["targets"]
    assert tumour["evidence"] is None
    answer = requests.get(server.url + lungs["evidence"]["saliency"], timeout=120)
    (tmp_path / "saliency.nii.gz").write_bytes(answer.content)
    saliency, source = (
        SimpleITK.ReadImage(str(file)) for file in (tmp_path / "saliency.nii.gz", server.studies / "radiograph.dcm")
    )
    assert saliency.GetPixelID() == SimpleITK.sitkFloat32
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(saliency, part)() == pytest.approx(getattr(source, part)())
    picture = requests.get(server.url + lungs["evidence"]["overlay"], timeout=120)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size[0] > 500
    for path in (lungs["evidence"]["overlay"].replace("overlay", "saliency"), "/evidence/guess/overlay.png"):
        refused = requests.get(server.url + path, timeout=120)
        assert refused.status_code == 404
        assert "Traceback" not in refused.text
    # batch inference hands out no addresses that nobody answers, and files are the server's own user's alone
    kept = [file for file in (server.log.parent / "data").rglob("evidence-*/*/*") if file.is_file()]
    assert kept
    assert {file.stat().st_mode & 0o077 for file in kept} == {0}


def test_a_series_that_is_copied_in_is_one_image(
    server: Any, client: MONAILabelClient, write_series: Callable[..., Path], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (4, 64, 80)).astype(np.uint8)
    folder = write_series(pixels, server.studies / "case" / "ct", uid="copied")
    uid = str(pydicom.dcmread(folder / "slice0.dcm", stop_before_pixels=True).SeriesInstanceUID)
    end = time.monotonic() + 30
    while uid not in (listed := client.datastore()["objects"]) and time.monotonic() < end:
        time.sleep(0.3)
    assert uid in listed
    assert not any(name.startswith("slice") for name in listed)
    file, params = client.infer("text_prompt", uid, {"text": "lungs", "presence": False, "planes": "0", **FAST})
    assert params["image"]["modality"] == "CT"
    assert SimpleITK.ReadImage(file).GetSize() == (80, 64, 4)
    mended, params = client.infer("refine", uid, {"heart": [[40, 30, 2]]})
    assert params["present_mask"] == "last"
    heart = TargetSet.load().get("heart").label
    assert label_map(mended)[2, 30, 40] == heart
    client.save_label(uid, mended)
    assert np.array_equal(label_map(client.download_label(uid, "final")), label_map(mended))
    answer = requests.get(f"{server.url}/datastore/image", params={"image": uid}, timeout=120)
    assert f"{uid}.nii.gz" in answer.headers["content-disposition"]
    (tmp_path / "series.nii.gz").write_bytes(answer.content)
    volume, mask = SimpleITK.ReadImage(str(tmp_path / "series.nii.gz")), SimpleITK.ReadImage(mended)
    slices = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    assert np.array_equal(
        label_map(tmp_path / "series.nii.gz"), SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(slices))
    )
    assert volume.GetSize() == mask.GetSize()
    for about in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(volume, about)(), getattr(mask, about)(), atol=1e-4)
    shutil.rmtree(server.studies / "case")
    time.sleep(1.1)
    assert uid not in client.datastore()["objects"]


def test_only_labels_are_saved(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    size = SimpleITK.ReadImage(str(server.studies / "film.png")).GetSize()
    label = SimpleITK.Image(size, SimpleITK.sitkUInt8)
    label[3, 3] = 77

    def save(name: str, **info: Any) -> requests.Response:
        where, content = f"{server.url}/datastore/label", (tmp_path / name).read_bytes()
        return requests.put(
            where,
            params={"image": "film", "tag": "checked"},
            data={"params": json.dumps(info)},
            files={"label": (name, content)},
            timeout=120,
        )

    (tmp_path / "byte.nii.gz").write_bytes(b"x")
    SimpleITK.WriteImage(label[1:, :], str(tmp_path / "narrow.nii.gz"))
    SimpleITK.WriteImage(label, str(tmp_path / "label.nii.gz"))
    SimpleITK.WriteImage(label * 0, str(tmp_path / "empty.nii.gz"))
    for name, words in (("byte.nii.gz", "label"), ("narrow.nii.gz", "voxels"), ("label.nii.gz", "77")):
        answer = save(name)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]
    assert "checked" not in client.datastore()["objects"]["film"]["labels"]
    assert save("label.nii.gz", label_info=[{"name": "cyst", "idx": 77}]).ok
    assert save("empty.nii.gz").ok
    assert not label_map(client.download_label("film", "checked")).any()
