import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient

from medclipsam.base.metrics import dice
from medclipsam.imaging import read_image
from medclipsam.imaging.label_map import ValueNames, read_label_map
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.doctor import check_networks
from medclipsam.server.inference.request_schema import MONAI_LABEL_KEYS
from medclipsam.server.learning.trainer import candidates, describe_training
from medclipsam.training.collect import read_studies
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble, write_members
from medclipsam.training.examples import Example
from medclipsam.training.lock import Holder, TrainingLock, holder_of
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.store import NetworkStore


def ask(client: TestClient, image: str = "new", model: str = "network", output: str = "json", **params: Any) -> Any:
    where = f"/infer/{model}?image={image}&output={output}"
    return client.post(where, data={"params": json.dumps(params)})


def sentence(answer: Any) -> str:
    text = answer.json()["detail"]
    assert "Traceback" not in text
    return str(text)


def test_a_published_network_segments_and_says_how_sure_it_is(
    serve: Callable[..., TestClient], place: Path, tmp_path: Path, make_discs: Any
) -> None:
    client = serve()
    told = client.get("/info/").json()["models"]["network"]
    assert (told["labels"], told["type"]) == ({"breast tumour": 1}, "segmentation")
    assert told["config"]["uncertainty"] == ["class_entropy", "total_entropy", "welch", "none"]
    answer = ask(client)
    assert answer.status_code == 200, answer.text
    params = answer.json()
    assert params["label_names"] == {"breast tumour": 1}
    assert params["network"]["version"] == 1
    made = NetworkStore(place / "networks").get("network", 1)
    assert params["network"]["dice"] == made.metrics["verdict"]["child"]
    assert all(target["reason"] in params["sentence"] for target in params["targets"])
    assert params["weights"]["network"]["sha256"] == made.identity
    mask = ask(client, output="image", result_extension=".nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes(mask.content)
    found = nibabel.load(tmp_path / "mask.nii.gz").get_fdata()
    truth = make_discs.draw(500)[1]
    assert dice(found.reshape(48, 48).T == 1, truth == 1) > 0.8
    assert params["targets"][0]["area_pixels"] == int((found == 1).sum())

    uncertainty = params["uncertainty"]
    content = client.get(uncertainty["evidence"]["uncertainty"])
    (tmp_path / "map.nii.gz").write_bytes(content.content)
    values = nibabel.load(tmp_path / "map.nii.gz").get_fdata().reshape(48, 48).T
    assert values.min() >= 0
    assert values.max() <= math.log(2) + 1e-6
    # the network is unsure at the border
    rows, columns = np.nonzero(truth)
    assert values.max() > 3 * values[int(rows.mean()), int(columns.mean())]
    assert uncertainty["score"] > 0
    overlay = client.get(uncertainty["evidence"]["overlay"])
    assert overlay.headers["content-type"] == "image/png"
    wrong = client.get(uncertainty["evidence"]["uncertainty"].replace("uncertainty.nii.gz", "saliency.nii.gz"))
    assert wrong.status_code == 404
    # a click mends what the network has drawn
    assert ask(client, model="refine", **{"breast tumour": [[2, 2, 0]]}).json()["present_mask"] == "last"


@pytest.mark.parametrize(
    "params",
    [
        {"uncertainty": "none"},
        {"uncertainty": ["class_entropy", "total_entropy", "welch", "none"]},
        {"uncertainty": "welch", "mirror": True},
        {"members": "1", "uncertainty": "total_entropy"},
        {"members": "auto", "memory": "100 MB", "modality": "US"},
    ],
)
def test_options_of_the_network(serve: Callable[..., TestClient], params: dict[str, Any]) -> None:
    answer = ask(serve(), **params)
    assert answer.status_code == 200, answer.text
    kept = answer.json()["uncertainty"]["evidence"]
    assert (kept is None) == (params.get("uncertainty") == "none")


def test_wrong_requests_are_one_sentence(serve: Callable[..., TestClient]) -> None:
    client = serve()
    for params, words in (
        ({"uncertainty": "guess"}, "'uncertainty'"),
        ({"members": 99}, "'members'"),
        ({"members": 1, "uncertainty": "welch"}, "'uncertainty'"),
        ({"memory": "1 kB"}, "'memory'"),
        ({"mirror": "perhaps"}, "'mirror'"),
        ({"text": "breast tumour"}, "'text'"),
        ({"modality": "CT"}, "trained on US, and the image is CT"),
        ({"unvalidated": 3}, "'unvalidated'"),
    ):
        answer = ask(client, **params)
        assert answer.status_code == 400, params
        assert words in sentence(answer)
    assert ask(client, image="nobody").status_code == 404
    assert ask(client, model="network_lungs").status_code == 404


def test_an_unvalidated_network_is_used_on_request_only(serve: Callable[..., TestClient], place: Path) -> None:
    (place / "networks" / "network" / "current.json").unlink()
    client = serve()
    assert "not validated" in client.get("/info/").json()["models"]["network"]["description"]
    refused = ask(client)
    assert refused.status_code == 409
    assert "Too few images" in sentence(refused)
    answer = ask(client, unvalidated=True)
    assert answer.status_code == 200
    assert answer.json()["network"]["status"] == "unvalidated"
    shutil.rmtree(place / "networks" / "network" / "0002")
    shutil.rmtree(place / "networks" / "network" / "0001")
    assert "network" not in client.get("/info/").json()["models"]
    assert ask(client).status_code == 404


def test_a_network_is_served_as_soon_as_it_is_published(serve: Callable[..., TestClient], place: Path) -> None:
    networks = place / "networks"
    kept = Path(shutil.move(networks / "network", place / "away"))
    client = serve()
    assert "network" not in client.get("/info/").json()["models"]
    answer = ask(client)
    assert answer.status_code == 404
    assert "allowed: text_prompt, refine" in sentence(answer)
    shutil.move(kept, networks / "network_discs")
    for version in ("0001", "0002"):
        file = networks / "network_discs" / version / "network.json"
        file.write_text(file.read_text().replace('"name": "network"', '"name": "network_discs"'))
    assert "network_discs" in client.get("/info/").json()["models"]
    assert ask(client, model="network_discs").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_networks_are_listed_and_rolled_back(serve: Callable[..., TestClient], place: Path) -> None:
    client = serve()
    listed = client.get("/networks/").json()["network"]
    assert listed["current"] == 1
    assert [network["status"] for network in listed["networks"]] == ["published", "unvalidated"]
    assert "images" not in listed["networks"][0]["metrics"]
    assert client.get("/networks/network/1/report.md").text.startswith("# Training of network")
    assert client.get("/networks/network/1/curve.png").content.startswith(b"\x89PNG")
    assert client.post("/networks/network/rollback?version=2").status_code == 400
    NetworkStore(place / "networks").publish("network", 2, "by hand")
    assert client.post("/networks/network/rollback").json()["version"] == 1
    for method, where in (
        ("get", "/networks/network/9/report.md"),
        ("get", "/networks/network/1/weights.bin"),
        ("get", "/networks/..%2f..%2fetc/1/report.md"),
        ("get", "/networks/network/x/report.md"),
        ("get", "/networks/network/-1/report.md"),
        ("post", "/networks/text_prompt/rollback"),
        ("post", "/networks/network/rollback?version=9"),
        ("post", "/networks/network_none/rollback"),
    ):
        answer = getattr(client, method)(where)
        assert 400 <= answer.status_code < 500, where
        assert "Traceback" not in answer.text


def test_only_admins_roll_back_and_train(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    client = serve()
    token = "a-token-of-enough-letters"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann annotator {token}\n")
    tokens.chmod(0o600)
    client.app.state.access = Access(load_tokens(tokens))  # type: ignore[attr-defined]
    head = {"Authorization": f"Bearer {token}"}
    assert client.get("/networks/", headers=head).status_code == 200
    assert client.post("/networks/network/rollback", headers=head).status_code == 403
    assert client.post("/train/network", headers=head).status_code == 403
    assert client.get("/networks/").status_code == 401


def test_what_a_training_asks_for_is_checked_before_it_starts(serve: Callable[..., TestClient]) -> None:
    client = serve()
    config = client.get("/info/").json()["trainers"]["network"]["config"]
    assert config["tracking"] == ["none", "tensorboard", "mlflow"]
    assert config["epochs"] == "auto"
    # what MONAI Label itself gives a meaning and a type must not be an option
    assert config.keys() & MONAI_LABEL_KEYS.keys() == {"device"}
    for params, words in (
        ({"epochs": 0}, "'epochs'"),
        ({"epoch": 3}, "'epoch'"),
        ({"name": "../../x"}, "'name'"),
        ({"loss": "other"}, "'loss'"),
        ({"targets": 7}, "'targets'"),
        ({"tracking": {"a": 1}}, "'tracking'"),
        ({"seed": 1e400}, "finite"),
    ):
        content = json.dumps(params)
        answer = client.post("/train/network", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, params
        assert words in sentence(answer)
    assert client.post("/train/text_prompt", json={}).status_code == 404
    assert client.get("/train/").status_code == 404


OUTLIVED = """
import sys, time
from pathlib import Path
from medclipsam.training.lock import TrainingLock
with TrainingLock(Path(sys.argv[1]), "network") as lock:
    lock.tell({"state": "training", "epoch": 3, "epochs": 9})
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_training_that_outlived_its_server_is_seen_and_can_be_ended(
    serve: Callable[..., TestClient], place: Path
) -> None:
    command = [sys.executable, "-c", OUTLIVED, str(place / "networks")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        client = serve()
        for where in ("/train/", "/train/?check_if_running=true"):
            status = client.get(where).json()
            assert (status["status"], status["adopted"]) == ("RUNNING", True)
            assert status["request"] == {"model": "network", "name": "network"}
            assert status["progress"]["epoch"] == 3
        assert client.get("/train/?all=true").json()[-1]["id"] == f"process-{process.pid}"
        assert client.get("/info/").json()["train_stats"]["network"]["epoch"] == 3
        refused = client.post("/train/network", json={})
        assert refused.status_code == 429
        assert client.delete("/train/").json()["status"] == "STOPPED"
        process.wait(20)
        assert holder_of(place / "networks") is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert client.get("/train/").status_code == 404
    assert client.get("/info/").json()["train_stats"]["network"]["training"]["state"] == "interrupted"


def test_an_adopted_training_says_which_trainer_it_is(place: Path) -> None:
    store = NetworkStore(place / "networks")
    told = [describe_training(store, Holder(1, "", what, 0.0))["request"] for what in ("finetune_clip", "liver")]
    assert told == [{"model": "finetune_clip"}, {"model": "network", "name": "liver"}]


def test_the_datastore_gives_what_the_folder_holds(place: Path, serve: Callable[..., TestClient]) -> None:
    client = serve()
    store = client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    from_store = {each.image_id: each for each in candidates(store)}
    from_folder = {each.image_id: each for each in read_studies(Path(store._root))}
    assert from_store.keys() == from_folder.keys() == {f"i{number:02d}" for number in range(32)}
    for name, each in from_store.items():
        other = from_folder[name]
        assert (each.image, each.patient, each.modality) == (other.image, other.patient, other.modality)
        assert {kind: label.path for kind, label in each.labels.items()} == {
            kind: label.path for kind, label in other.labels.items()
        }


def test_the_validation_images_of_a_workspace_stay(serve: Callable[..., TestClient], place: Path) -> None:
    from medclipsam.base.errors import InputError

    with pytest.raises(InputError, match=r"share 0\.35 and seed 4"):
        serve(validation_share="0.2")


def test_targets_that_overlap_are_answered_whole(
    serve: Callable[..., TestClient], place: Path, studies: Path, tmp_path: Path
) -> None:
    import torch

    from medclipsam.training.network import Network as Layers

    store = NetworkStore(place / "networks")
    labels, classes = {"breast tumour": 1, "cyst": 201}, {"breast tumour": 1, "cyst": 2}
    examples = [
        Example(each.image_id, each.image, each.labels["final"].path, "final", "US")
        for each in read_studies(place / "studies")[:2]
    ]
    options = TrainingOptions(device="cpu", max_side=32, base_filters=4, max_filters=16, multilabel="always")
    made = store.work("network", "overlaps") / "made"
    made.mkdir()
    plan = make_plan(examples, classes, options)
    plan.write(made)
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(Layers(plan).state_dict())
    write_members(states, made / ENSEMBLE_FILE)
    about = {"name": "network", "status": "published", "reason": "", "labels": labels, "classes": classes}
    identity = Ensemble.load(made, device="cpu").identity
    assert store.add(made, {**about, "modality": "US", "identity": identity}, expected=1) is not None

    client = serve()
    image = read_image(studies / "new.png", modality="US")
    expected = Ensemble.load(store.get("network", 3).folder, device="cpu").predict(image)
    masks = {name: expected.mask(index) for name, index in classes.items()}
    assert (masks["breast tumour"] & masks["cyst"]).any()
    for how in ("class_entropy", "total_entropy", "welch"):
        answer = ask(client, uncertainty=how)
        assert answer.status_code == 200, answer.text
        areas = {target["name"]: target["area_pixels"] for target in answer.json()["targets"]}
        assert areas == {name: int(mask.sum()) for name, mask in masks.items()}
        assert answer.json()["uncertainty"]["evidence"] is not None
    whole = ask(client, output="image", result_extension=".seg.nrrd")
    (tmp_path / "mask.seg.nrrd").write_bytes(whole.content)
    label, _ = read_label_map(tmp_path / "mask.seg.nrrd", image, ValueNames())
    assert dict(label.names) == labels
    for name, mask in masks.items():
        np.testing.assert_array_equal(label.mask(name), mask)
    # who knows one label a voxel gets the smaller of two
    flat = ask(client, output="image", result_extension=".nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes(flat.content)
    found = nibabel.load(tmp_path / "mask.nii.gz").get_fdata().reshape(48, 48).T
    np.testing.assert_array_equal(found, np.array([0, 1, 201])[expected.labels[0]])


def test_memory_that_runs_out_is_told(serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()

    def too_much(self: Ensemble, *args: Any) -> np.ndarray:
        raise MemoryError("Unable to allocate 3 TiB")

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "_probabilities", too_much)
        answer = ask(client)
    assert answer.status_code == 503
    assert "smaller memory" in sentence(answer)
    assert ask(client).status_code == 200


def test_the_doctor_tells_of_networks(place: Path, tmp_path: Path) -> None:
    assert check_networks(tmp_path / "nothing").status == "ok"
    networks = place / "networks"
    with TrainingLock(networks, "network_other"):
        check = check_networks(networks)
    assert check.status == "ok"
    assert "network serves version 1 (breast tumour)" in check.found
    assert f"process {os.getpid()} trains network_other" in check.found
    (networks / "network" / "0001" / "ensemble.safetensors").unlink()
    check = check_networks(networks)
    assert check.status == "failed"
    assert "0001 lacks ensemble.safetensors" in check.found
    (networks / "network" / "current.json").write_text("{")
    assert "current.json" in check_networks(networks).found
