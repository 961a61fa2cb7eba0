"""What 3D Slicer's MONAI Label module asks, in its order and by its own client: on a folder and on a PACS."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import SimpleITK
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from medclipsam.targets import TargetSet

LUNGS, HEART = (TargetSet.load().get(name).label for name in ("lungs x-ray", "heart"))


def voxels(file: str | Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def lease(server: Any, method: str, image: str, client: str) -> requests.Response:
    """Keep an image for a client, or give it back."""
    where = f"{server.url}/rounds/leases"
    return requests.request(method, where, params={"image": image, "client_id": client}, timeout=60)


def leased(server: Any, client: str) -> set[str]:
    """Return the images that are kept for a client."""
    found = requests.get(f"{server.url}/rounds/leases", params={"client_id": client}, timeout=60).json()
    return {each["image"] for each in found}


@pytest.mark.parametrize("where", ["folder", "pacs"])
def test_the_sequence_of_the_module(
    where: str, request: pytest.FixtureRequest, pacs_phantoms: dict[str, Any], tmp_path: Path
) -> None:
    server = request.getfixturevalue("server" if where == "folder" else "pacs_server")
    image = "film" if where == "folder" else pacs_phantoms["chest-xray-1"].series_uid
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer")

    # connect: models with their options, strategies, trainers
    assert not client.auth_enabled()
    info = client.info()
    assert {"text_prompt", "refine", "lungs_x_ray"} <= info["models"].keys()
    assert "network" in info["trainers"]
    assert info["labels"]
    options = info["models"]["text_prompt"]["config"]

    # next sample, for each strategy of the list: it is kept for who asked, and nobody else is offered it
    # nothing waits for a consensus of several readers yet
    assert client.next_sample("adjudication", {}) == {}
    for strategy in set(info["strategies"]) - {"adjudication"}:
        sample = client.next_sample(strategy, {})
        assert sample["id"] in client.datastore()["objects"]
        assert sample["lease"]["holder"] == "slicer"
        assert datetime.fromisoformat(sample["lease"]["until"]) > datetime.now(UTC)
        assert sample["id"] in leased(server, "slicer")
    assert lease(server, "PUT", image, "slicer").ok
    reserved = leased(server, "slicer")
    given_back = next(each for each in reserved if each != image)
    assert lease(server, "DELETE", given_back, "slicer").ok
    other = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="other")
    assert other.next_sample("random", {})["id"] not in reserved - {given_back}
    assert lease(server, "PUT", image, "other").status_code == 409
    answer = requests.get(f"{server.url}/datastore/image", params={"image": image}, timeout=120)
    assert answer.ok, answer.text
    name = answer.headers["content-disposition"].split('"')[1]
    (tmp_path / name).write_bytes(answer.content)
    volume = SimpleITK.ReadImage(str(tmp_path / name))

    # the module sends all options, those that nobody touched too: lists as the lists that they are
    asked = {**options, "text": "both lungs", "steps": 1, "samples": 1, "result_extension": ".nrrd"}
    file, params = client.infer("text_prompt", image, asked)
    found = voxels(file)
    assert found.any()
    assert params["label_names"]["lungs x-ray"] == LUNGS
    assert SimpleITK.ReadImage(file).GetSize()[:2] == volume.GetSize()[:2]
    row, column = np.argwhere(found.reshape(found.shape[-2:]) == 0)[0]
    clicks = {"label": "lungs x-ray", "lungs x-ray": [[int(column), int(row), 0]], "background": []}
    file, params = client.infer("refine", image, clicks)
    mended = voxels(file)
    assert params["present_mask"] == "last"
    assert mended.reshape(mended.shape[-2:])[row, column] == LUNGS

    # submit: segments numbered from 1 in the order of the module's list, by name
    mended.flat[-1] = HEART
    exported = np.select([mended == LUNGS, mended == HEART], [1, 2]).astype(np.uint8)
    label = SimpleITK.GetImageFromArray(exported)
    label.CopyInformation(SimpleITK.ReadImage(file))
    SimpleITK.WriteImage(label, str(tmp_path / "label.nii.gz"))
    named = [{"name": "lungs x-ray", "idx": 1, "color": [1, 0, 0]}, {"name": "heart", "idx": 2, "color": [0, 1, 0]}]
    saved = client.save_label(image, str(tmp_path / "label.nii.gz"), params={"label_info": named})
    kept = voxels(client.download_label(saved["label"], "final"))
    assert np.array_equal(kept.ravel(), mended.ravel())
    told = requests.get(
        f"{server.url}/datastore/label/info", params={"label": saved["label"], "tag": "final"}, timeout=60
    ).json()
    assert {entry["name"]: entry["idx"] for entry in told["label_info"]} == {"lungs x-ray": LUNGS, "heart": HEART}
    status = requests.get(f"{server.url}/datastore/", timeout=60).json()
    assert status["completed"] == 1
    assert leased(server, "slicer") == reserved - {image, given_back}

    # train, look at how it goes, and stop; the log is an admin's of a server that asks who is there
    started = client.train_start("network", {"preset": "small"})
    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert client.train_status()["id"] == started["id"]
    client.train_stop()
    end = time.monotonic() + 60
    while client.train_status()["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
        time.sleep(0.5)
    assert client.train_status()["status"] not in ("SUBMITTED", "RUNNING")
    with pytest.raises(MONAILabelClientException):
        client.train_start("nothing", {})
    assert requests.get(f"{server.url}/logs/", timeout=60).status_code == 403


def test_layers_of_a_segmentation_are_submitted(server: Any, tmp_path: Path) -> None:
    """As the module submits where segments may overlap: one file with layers."""
    import nrrd

    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer")
    columns, rows = SimpleITK.ReadImage(str(server.studies / "film.png")).GetSize()
    layers = np.zeros((2, columns, rows, 1), np.uint8)
    layers[0, 10:20, 5:9], layers[1, 30:40, 5:9] = 1, 1
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([np.full(3, np.nan), np.eye(3)]),
        "space origin": np.zeros(3),
    }
    for number, name in enumerate(("lungs x-ray", "heart")):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": "1"}
        header[f"Segment{number}_Layer"] = str(number)
    nrrd.write(str(tmp_path / "label.seg.nrrd"), layers, header)
    client.save_label("film", str(tmp_path / "label.seg.nrrd"), tag="layers")
    kept = voxels(client.download_label("film", "layers")).reshape(rows, columns)
    assert set(np.unique(kept[5:9, 10:20])) == {LUNGS}
    assert set(np.unique(kept[5:9, 30:40])) == {HEART}
    assert (kept != 0).sum() == 80
    layers[1, 10:12] = 1
    nrrd.write(str(tmp_path / "label.seg.nrrd"), layers, header)
    client.save_label("film", str(tmp_path / "label.seg.nrrd"), tag="layers")
    again, told = nrrd.read(client.download_label("film", "layers"))
    for number, name in enumerate(("lungs x-ray", "heart")):
        (key,) = (key for key, text in told.items() if key.endswith("_Name") and text == name)
        value, layer = (int(told[key.replace("_Name", f"_{each}")]) for each in ("LabelValue", "Layer"))
        assert value == (LUNGS, HEART)[number]
        assert np.array_equal(again[layer] == value, layers[number] == 1)
