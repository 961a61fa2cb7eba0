"""From pseudo-labels over corrections to a published network, over HTTP; and a server that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import SimpleITK
from PIL import Image

TUMOUR = 1
SECONDS = 400


@pytest.mark.timeout(1500)
def test_labels_become_a_network_that_survives_a_kill(start: Callable[..., Any], tumours: Any, tmp_path: Path) -> None:
    truths, held = tumours.truths, tumours.held
    # not corrected, but given a pseudo-label
    pseudo = [name for name in tumours.names if name not in held][:4]
    corrected = [name for name in tumours.names if name not in pseudo]
    tiny = {**tumours.training, "keep": 2, "iterations": 10}
    serve = tumours.serve

    def command(studies: Path, port: int) -> Sequence[str]:
        tumours.draw(studies)
        return serve(studies, port)

    assert 10 <= len(held) <= 16, "or the network could not be validated"
    server = start(command)
    url = server.url
    assert "network" not in requests.get(f"{url}/info/", timeout=60).json()["models"]
    refused = requests.post(f"{url}/infer/network", params={"image": "b00"}, timeout=60)
    assert refused.status_code == 404

    # pseudo-labels by the zero-shot task; M2IB as short as it gets, since not its quality is tested here
    asked = {"modality": "US", "steps": 1, "samples": 1, "label_tag": "original", "save_label": True}
    for name in pseudo:
        assert server.infer("breast_tumour", name, output="json", **asked).ok
    info = requests.get(f"{url}/datastore/label/info?label={pseudo[0]}&tag=original", timeout=60).json()
    assert {"presence_score", "sam_score"} <= info["params"]["targets"][0].keys()

    # what people have corrected
    for name in corrected:
        mask = tmp_path / f"{name}.png"
        Image.fromarray(truths[name].astype(np.uint8) * TUMOUR).save(mask)
        with mask.open("rb") as content:
            saved = requests.put(
                f"{url}/datastore/label",
                params={"image": name, "tag": "final"},
                data={"params": json.dumps({"label_info": [{"name": "breast tumour", "idx": TUMOUR}]})},
                files={"label": (mask.name, content)},
                timeout=60,
            )
        assert saved.ok, saved.text

    options = {**tiny, "targets": "breast tumour"}
    assert requests.post(f"{url}/train/network", json={**options, "epochs": -1}, timeout=60).status_code == 400
    started = requests.post(f"{url}/train/network", json=options, timeout=60)
    assert started.status_code == 200, started.text
    assert requests.post(f"{url}/train/network", json=options, timeout=60).status_code == 429
    ended = wait(f"{url}/train/")
    assert ended["status"] == "DONE", ended["details"]
    assert any("published" in line for line in ended["details"])
    stats = requests.get(f"{url}/info/", timeout=60).json()["train_stats"]["network"]
    assert (stats["epoch"], stats["total_epochs"], stats["training"]["state"]) == (6, 6, "done")
    assert stats["best_metric"] > 0.1

    # it is there without a restart, with what it was trained on
    listed = requests.get(f"{url}/networks/", timeout=60).json()["network"]
    assert listed["current"] == 1
    (network,) = listed["networks"]
    assert network["data"]["validation"] == len(held)
    assert network["data"]["training"]["final"] == len(corrected) - len(held)
    model = requests.get(f"{url}/info/", timeout=60).json()["models"]["network"]
    assert model["labels"] == {"breast tumour": TUMOUR}
    answer = infer(url, "b05")
    uncertainty = requests.get(url + answer["uncertainty"]["evidence"]["uncertainty"], timeout=60)
    (tmp_path / "uncertainty.nii.gz").write_bytes(uncertainty.content)
    values = SimpleITK.ReadImage(str(tmp_path / "uncertainty.nii.gz"))
    assert values.GetPixelID() == SimpleITK.sitkFloat32
    assert values.GetSize()[:2] == Image.open(server.studies / "b05.png").size
    found = SimpleITK.GetArrayFromImage(values)
    assert found.min() >= 0
    assert 0 < found.max() <= np.log(2) + 1e-6

    # a server that is killed leaves a training behind; the next one sees it, starts no second, and can end it
    long = {**options, "epochs": 5000, "keep": 1}
    assert requests.post(f"{url}/train/network", json=long, timeout=60).ok
    wait(f"{url}/train/", lambda status: (status.get("progress") or {}).get("stage") == "train")
    (training,) = trainings(server.process.pid)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(20)
    try:
        again = start(serve, again=server)
        status = requests.get(f"{again.url}/train/", timeout=60).json()
        assert (status["status"], status["adopted"], status["id"]) == ("RUNNING", True, f"process-{training.pid}")
        before = status["progress"]["epoch"]
        assert requests.post(f"{again.url}/train/network", json=long, timeout=60).status_code == 429
        wait(f"{again.url}/train/", lambda status: status["progress"]["epoch"] > before)
        assert not trainings(again.process.pid)
        assert requests.delete(f"{again.url}/train/", timeout=60).json()["status"] == "STOPPED"
        assert not training.is_running() or training.status() == psutil.STATUS_ZOMBIE
        assert requests.get(f"{again.url}/networks/", timeout=60).json()["network"]["current"] == 1
        assert infer(again.url, "b05")["network"]["version"] == 1
    finally:
        if training.is_running():
            training.kill()


def infer(url: str, image: str) -> dict[str, Any]:
    answer = requests.post(f"{url}/infer/network", params={"image": image, "output": "json"}, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def trainings(pid: int) -> list[psutil.Process]:
    """Return the training processes that a server has started."""
    return [child for child in psutil.Process(pid).children() if "train" in child.cmdline()]


def wait(where: str, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
    """Poll a state until it is as wanted, by default no longer running."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        answer = requests.get(where, timeout=60)
        status = dict(answer.json()) if answer.ok else {}
        running = status.get("status") in ("SUBMITTED", "RUNNING")
        if until is None and status and not running:
            return status
        if until is not None and running and until(status):
            return status
        if until is not None and status and not running:
            pytest.fail(f"It ended: {status}")
        time.sleep(0.3)
    pytest.fail(f"Nothing came of it in {SECONDS} s: {status}")
