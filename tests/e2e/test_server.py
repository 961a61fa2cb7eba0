"""`medclipsam serve` as a process, spoken to over HTTP as its clients do: 3D Slicer's client library, OHIF, curl."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import SimpleITK
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from medclipsam.targets import TargetSet, label_table

# For tests that look at something else than how well the mask fits.
FAST = {"steps": 1, "samples": 1}
IMAGES = ["breast", "chest_ct", "film", "radiograph", "small"]


@pytest.fixture
def client(server: Any, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="a-test")


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum())


def read(file: str | Path) -> tuple[SimpleITK.Image, np.ndarray]:
    image = SimpleITK.ReadImage(str(file))
    return image, SimpleITK.GetArrayFromImage(image)


def test_info_has_labels_models_and_options(client: MONAILabelClient) -> None:
    info = client.info()
    table = label_table(TargetSet.load())
    assert info["name"] == "medclipsam"
    assert info["labels"] == [*sorted(table, key=table.__getitem__), "background"]
    assert sorted(info["models"]) == ["breast_tumour", "lungs_x_ray", "refine", "text_prompt"]
    assert info["models"]["text_prompt"]["labels"] == table
    config = info["models"]["text_prompt"]["config"]
    assert config["text"] == ""
    assert config["visual_prompt"] == ["auto", "boxes", "points", "both", "mask"]
    assert config["presence_threshold"] == "auto"
    # a lone DICOM slice is listed once its folder has been left alone for a while
    end = time.monotonic() + 10
    while info["datastore"]["total"] != len(IMAGES) and time.monotonic() < end:
        time.sleep(0.2)
        info = client.info()
    assert info["datastore"]["total"] == len(IMAGES)


def test_studies_are_listed_by_file_name_without_extension(client: MONAILabelClient) -> None:
    assert sorted(client.datastore()["objects"]) == IMAGES


def test_a_file_that_cannot_be_read_is_named_with_the_studies_and_in_the_log(server: Any) -> None:
    assert list(requests.get(f"{server.url}/datastore/", timeout=30).json()["unreadable"]["files"]) == ["preview.jpg"]
    space = next((server.log.parent / "data" / "medclipsam" / "workspaces").iterdir())
    assert "preview.jpg" in (space / "app" / "logs" / "app.log").read_text()


def test_two_targets_in_one_text(server: Any, client: MONAILabelClient) -> None:
    file, params = client.infer("text_prompt", "film", {"text": "both lungs; heart", "result_extension": ".nrrd"})
    source, _ = read(server.studies / "film.png")
    mask, labels = read(file)
    assert file.endswith(".nrrd")
    assert mask.GetSize() == source.GetSize()
    names = params["label_names"]
    assert len(names) == 2
    assert set(np.unique(labels)) <= {0, *names.values()}
    lungs, heart = (labels == label for label in names.values())
    truth = server.masks["film"]
    assert dice(lungs, truth["lungs"][0]) > 0.7
    assert dice(heart, truth["heart"][0]) > 0.5
    assert [target["label"] for target in params["targets"]] == list(names.values())
    assert all(target["found"] for target in params["targets"])
    assert params["sentence"]


def test_target_model_on_dicom(server: Any, client: MONAILabelClient) -> None:
    file, params = client.infer("lungs_x_ray", "radiograph", {})
    source, _ = read(server.studies / "radiograph.dcm")
    mask, labels = read(file)
    assert file.endswith(".nii.gz")
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, part)() == pytest.approx(getattr(source, part)())
    label = TargetSet.load().get("lungs x-ray").label
    assert params["label_names"] == {"lungs x-ray": label}
    assert dice(labels == label, server.masks["radiograph"]["lungs"]) > 0.7
    # a projection radiograph's known spacing gives an area
    assert params["targets"][0]["area_mm2"] == pytest.approx((labels == label).sum() * 1.5 * 1.5)


def test_volume_in_the_volumes_geometry(server: Any, client: MONAILabelClient) -> None:
    params = {"text": "lungs", "presence": False, "planes": "2-3", "result_extension": ".nrrd", **FAST}
    file, answer = client.infer("text_prompt", "chest_ct", params)
    source, _ = read(server.studies / "chest_ct.nii.gz")
    mask, labels = read(file)
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, part)() == pytest.approx(getattr(source, part)())
    assert not labels[[0, 1, 4, 5]].any()
    assert answer["options"]["planes"] == "2-3"


def test_absent_target_is_an_empty_mask_and_a_sentence(server: Any, client: MONAILabelClient) -> None:
    file, params = client.infer("text_prompt", "film", {"text": "breast tumour"})
    assert not read(file)[1].any()
    assert params["targets"][0]["found"] is False
    assert "not found" in params["sentence"]


def test_same_request_gives_the_same_mask(client: MONAILabelClient) -> None:
    masks = [read(client.infer("text_prompt", "breast", {"text": "breast tumour", **FAST})[0])[1] for _ in range(2)]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii"])
def test_output_image_is_the_file_alone(server: Any, tmp_path: Path, extension: str) -> None:
    # as OHIF asks
    params = {"result_extension": extension, "result_dtype": "uint8", "result_compress": False}
    params["restore_label_idx"] = False
    answer = server.infer("text_prompt", "film", output="image", text="heart", **params, **FAST)
    assert answer.status_code == 200
    assert extension in answer.headers["content-disposition"]
    file = tmp_path / f"mask{extension}"
    file.write_bytes(answer.content)
    mask, labels = read(file)
    assert mask.GetSize() == read(server.studies / "film.png")[0].GetSize()
    assert labels.dtype == np.uint8


def test_output_json_is_the_evidence_alone(server: Any) -> None:
    answer = server.infer("text_prompt", "film", output="json", text="heart")
    assert answer.headers["content-type"] == "application/json"
    evidence = answer.json()
    assert list(evidence["label_names"]) == [evidence["targets"][0]["name"]]
    assert evidence["weights"]["clip"]["sha256"]
    assert evidence["latencies"]["total"] > 0


def test_drop_downs_that_nobody_touched_mean_their_first_entry(server: Any, client: MONAILabelClient) -> None:
    config = {key: value for key, value in client.info()["models"]["text_prompt"]["config"].items() if key != "text"}
    config |= FAST
    untouched = server.infer("text_prompt", "film", output="json", text="heart", **config).json()
    plain = server.infer("text_prompt", "film", output="json", text="heart", **FAST).json()
    assert untouched["options"] == plain["options"]


@pytest.mark.parametrize(
    ("model", "image", "params", "status", "names"),
    [
        ("text_prompt", "film", {"text": "heart", "colour": "red"}, 400, ["'colour'", "'red'"]),
        ("text_prompt", "film", {"text": "heart", "beta": "much"}, 400, ["'beta'", "'much'"]),
        ("text_prompt", "film", {"text": "heart", "postprocess": "magic"}, 400, ["kmeans, threshold, crf"]),
        ("text_prompt", "film", {"text": "heart", "planes": "4"}, 400, ["'planes'", "'4'"]),
        ("text_prompt", "film", {"text": "heart", "result_extension": ".exe"}, 400, ["'.exe'", ".nrrd"]),
        ("text_prompt", "film", {}, 400, ["'text'"]),
        ("text_prompt", "film", {"text": "!!!"}, 400, ["'!!!'"]),
        ("text_prompt", "nobody", {"text": "heart"}, 404, ["'nobody'"]),
        ("text_prompt", "/etc/passwd", {"text": "heart"}, 400, ["/etc/passwd"]),
        ("left_ear", "film", {"text": "heart"}, 404, ["'left_ear'", "text_prompt"]),
        ("breast_tumour", "radiograph", {}, 400, ["US", "DX"]),
    ],
)
def test_bad_request_is_one_sentence(
    server: Any, model: str, image: str, params: dict[str, Any], status: int, names: list[str]
) -> None:
    answer = server.infer(model, image, **params)
    assert answer.status_code == status
    sentence = answer.json()["detail"]
    assert "\n" not in sentence
    assert "Traceback" not in answer.text
    for name in names:
        assert name in sentence


def test_params_that_are_no_json_are_a_bad_request(server: Any) -> None:
    where = f"{server.url}/infer/text_prompt"
    answer = requests.post(where, params={"image": "film"}, data={"params": '{"text": "left lung'}, timeout=30)
    assert answer.status_code == 400
    assert "no JSON" in answer.json()["detail"]


def test_client_library_is_told_the_sentence(client: MONAILabelClient) -> None:
    with pytest.raises(MONAILabelClientException) as error:
        client.infer("text_prompt", "film", {"text": "heart", "colour": "red"})
    assert "'colour'" in str(error.value.msg)


def test_infer_on_a_file_sent_along(server: Any, client: MONAILabelClient) -> None:
    sent = str(server.studies / "film.png")
    file, params = client.infer("text_prompt", "", {"text": "both lungs"}, file=sent)
    assert dice(read(file)[1] > 0, server.masks["film"]["lungs"][0]) > 0.7
    assert sorted(client.datastore()["objects"])[: len(IMAGES)] == IMAGES
    assert params["sentence"]


def test_uploaded_image_becomes_a_study(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    shutil.copy(server.studies / "film.png", tmp_path / "anything.png")
    assert client.upload_image(str(tmp_path / "anything.png"), "uploaded") == {"image": "uploaded"}
    try:
        file, _ = client.infer("text_prompt", "uploaded", {"text": "heart", **FAST})
        assert read(file)[0].GetSize() == read(server.studies / "film.png")[0].GetSize()
    finally:
        gone = requests.delete(f"{server.url}/datastore/image", params={"id": "uploaded"}, timeout=30)
    assert gone.ok


def test_session_of_one_file(server: Any, client: MONAILabelClient) -> None:
    session = client.create_session(str(server.studies / "radiograph.dcm"))["session_id"]
    file, params = client.infer("lungs_x_ray", "", {}, session_id=session)
    assert read(file)[1].any()
    assert params["image"]["modality"] == "DX"
    client.remove_session(session)
    with pytest.raises(MONAILabelClientException):
        client.get_session(session)


def test_session_of_a_dicom_series(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    import pydicom
    from pydicom.uid import generate_uid

    series = []
    for place in range(3):
        data = pydicom.dcmread(server.studies / "small.dcm")
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(place)])
        data.InstanceNumber = place + 1
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], 5.0 * place]
        series.append(tmp_path / f"slice{place}.dcm")
        data.save_as(series[-1])
    files = [("files", (file.name, file.read_bytes())) for file in series]
    session = requests.put(f"{server.url}/session/", files=files, timeout=30).json()["session_id"]
    file, params = client.infer("text_prompt", "", {"text": "lungs", "presence": False, **FAST}, session_id=session)
    mask, _ = read(file)
    assert mask.GetSize() == (128, 128, 3)
    assert mask.GetSpacing()[2] == pytest.approx(5.0)
    assert params["image"]["modality"] == "CT"


def test_next_sample_and_a_saved_label(server: Any, client: MONAILabelClient, tmp_path: Path) -> None:
    assert client.next_sample("random", {})["id"] in client.datastore()["objects"]
    answer = requests.post(f"{server.url}/activelearning/cleverest", json={}, timeout=30)
    assert answer.status_code == 404
    assert "'cleverest'" in answer.json()["detail"]

    file, params = client.infer("text_prompt", "film", {"text": "heart", **FAST})
    before = client.info()["datastore"]["completed"]
    client.save_label("film", file, params=params)
    assert client.info()["datastore"]["completed"] == before + 1
    saved = client.download_label("film", "final")
    assert np.array_equal(read(saved)[1], read(file)[1])


def test_batch_inference_labels_every_image_without_a_gpu(server: Any, client: MONAILabelClient) -> None:
    # what the route's own description proposes, with the text
    params = {"device": "cuda", "multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True}
    params |= {"label_tag": "pre", "max_workers": 1, "max_batch_size": 0, "text": "lungs", "planes": "0", **FAST}
    task = batch(server, "text_prompt", params)
    assert task["status"] == "DONE", task
    objects = client.datastore()["objects"]
    assert all("pre" in objects[image]["labels"] for image in IMAGES)
    saved = client.download_label("radiograph", "pre")
    assert read(saved)[1].any()
    assert objects["radiograph"]["labels"]["pre"]["info"]["params"]["label_names"]


def batch(server: Any, model: str, params: dict[str, Any]) -> dict[str, Any]:
    """Run one batch to its end and return its state."""
    where = f"{server.url}/batch/infer"
    started = requests.post(f"{where}/{model}", json=params, timeout=30)
    assert started.ok, started.text
    end = time.monotonic() + 180
    while time.monotonic() < end:
        task = requests.get(where, timeout=30).json()
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            return dict(task)
        time.sleep(0.5)
    raise AssertionError(f"The batch did not end: {json.dumps(task)}")


def test_the_server_answers_while_it_infers_and_overlapping_masks_are_those_of_serial_requests(server: Any) -> None:
    asked = [("chest_ct", "lungs"), ("film", "heart"), ("breast", "breast tumour")]
    slow = {"presence": False, "steps": 4, "samples": 4}
    answered = 0
    with ThreadPoolExecutor(len(asked)) as pool:
        sent = [
            pool.submit(server.infer, "text_prompt", image, output="image", text=text, **slow) for image, text in asked
        ]
        while not all(one.done() for one in sent):
            assert requests.get(f"{server.url}/info/", timeout=30).ok
            answered += not all(one.done() for one in sent)
            time.sleep(0.1)
        together = [one.result().content for one in sent]
    assert answered
    for (image, text), content in zip(asked, together, strict=True):
        alone = server.infer("text_prompt", image, output="image", text=text, **slow).content
        assert np.array_equal(voxels(content), voxels(alone))


def voxels(content: bytes) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


def test_a_volume_tells_its_progress_and_is_cancelled(server: Any) -> None:
    where = f"{server.url}/requests/a-volume"
    slow = {"text": "lungs", "presence": False, "steps": 200, "samples": 10}
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(
            requests.post,
            f"{server.url}/infer/text_prompt",
            params={"image": "chest_ct", "request_id": "a-volume"},
            data={"params": json.dumps(slow)},
            timeout=120,
        )
        state = wait_for_state(where, "running")
        assert state["model"] == "text_prompt"
        assert requests.delete(where, timeout=30).ok
        answer = sent.result()
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["detail"]
    assert requests.get(where, timeout=30).json()["state"] == "cancelled"


def test_a_client_that_leaves_stops_its_work(server: Any) -> None:
    slow = {"text": "lungs", "presence": False, "steps": 200, "samples": 10}
    query = {"image": "chest_ct", "request_id": "leaves"}
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{server.url}/infer/text_prompt", params=query, data={"params": json.dumps(slow)}, timeout=(30, 2)
        )
    wait_for_state(f"{server.url}/requests/leaves", "cancelled")
    assert server.infer("text_prompt", "film", output="json", text="heart", **FAST).ok


def wait_for_state(where: str, state: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = requests.get(where, timeout=30)
        if answer.ok and answer.json()["state"] == state:
            return dict(answer.json())
        time.sleep(0.05)
    raise AssertionError(f"The request did not come to be {state}: {answer.text}")


def test_masks_and_labels_are_in_the_audit_file_and_texts_in_no_log(server: Any, client: MONAILabelClient) -> None:
    space = next((server.log.parent / "data" / "medclipsam" / "workspaces").iterdir())
    file, params = client.infer("text_prompt", "film", {"text": "an unmistakable phrase", "presence": False, **FAST})
    client.save_label("film", file, tag="audited", params=params)
    audit = space / "audit.jsonl"
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600
    mask, label = [json.loads(line) for line in audit.read_text().splitlines()][-2:]
    assert (mask["event"], mask["image"], mask["client"]) == ("mask", "film", "a-test")
    assert (label["event"], label["tag"]) == ("label saved", "audited")
    assert mask["weights"] == label["weights"]
    for text in (audit.read_text(), server.output(), (space / "app" / "logs" / "app.log").read_text()):
        assert "unmistakable" not in text


def test_what_the_server_writes_is_its_owners(server: Any) -> None:
    space = next((server.log.parent / "data" / "medclipsam" / "workspaces").iterdir())
    others = [path for path in space.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert others == []


def test_viewer_and_api_pages_are_served(server: Any) -> None:
    page = requests.get(f"{server.url}/ohif/", timeout=30)
    assert page.ok
    assert "<html" in page.text.lower()
    assert requests.get(f"{server.url}/docs", timeout=30).ok
    assert "/infer/{model}" in requests.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]


def test_other_origins_are_not_let_in(server: Any) -> None:
    answer = requests.get(f"{server.url}/info/", headers={"Origin": "http://evil.example"}, timeout=30)
    assert "access-control-allow-origin" not in answer.headers


def test_start_is_announced_and_nothing_was_logged_as_a_traceback(server: Any) -> None:
    output = server.output()
    assert f"\nopen {server.url}/\n" in output
    assert f"{server.url}/ohif/" in output
    assert "Traceback" not in output


def test_workspace_is_kept_from_a_second_server(server: Any) -> None:
    data = server.log.parent / "data"
    done = subprocess.run(
        [sys.executable, "-m", "medclipsam", "serve", "--studies", str(server.studies), "--port", "0"],
        env={**os.environ, "XDG_DATA_HOME": str(data)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"in use by process {server.process.pid}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_server_ends_when_told_with_its_subprocesses(server: Any) -> None:
    """Last, since no other test can use the server after it."""
    requests.post(f"{server.url}/batch/infer/text_prompt", json={"text": "lungs", "max_workers": 1}, timeout=30)
    end = time.monotonic() + 30
    while not (children := server.children()) and time.monotonic() < end:
        time.sleep(0.1)
    assert children
    server.process.terminate()
    assert server.process.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    space = next((server.log.parent / "data" / "medclipsam" / "workspaces").iterdir())
    left = [
        file.name for file in (space / "tmp").rglob("*") if file.name.endswith((".nii.gz", ".nrrd", ".png", ".dcm"))
    ]
    assert left == []
    assert "Traceback" not in server.output()
