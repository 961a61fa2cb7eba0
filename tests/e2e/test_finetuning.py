"""Fine-tuning through a real server: progress, better weights at once, the way back, and stopping."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from medclipsam.finetune.store import ClipStore

SAID = ("a breast ultrasound", "an MRI of the brain", "a chest x-ray", "a chest CT")
FAST = {"epochs": 12, "batch_size": 16, "learning_rate": 3e-3, "loss": "infonce", "gallery": 24}


@pytest.fixture(scope="module")
def tuning_server(start: Callable[..., Any], tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server whose workspace has a table of pictures in the studies with their captions."""
    place = tmp_path_factory.mktemp("tuning")
    studies, pairs = place / "studies", place / "workspace" / "pairs"
    studies.mkdir()
    pairs.mkdir(parents=True)
    rows = ["image,caption"]
    rng = np.random.default_rng(0)
    for kind, text in enumerate(SAID):
        for number in range(40):
            picture = rng.normal(30, 10, (2, 24, 2, 24))
            picture[kind // 2, :, kind % 2] += 150
            name = f"{kind}-{number:02d}.png"
            Image.fromarray(picture.reshape(48, 48).astype(np.uint8)).save(studies / name)
            rows.append(f"{name},{text}")
    (pairs / "said.csv").write_text("\n".join(rows))

    def command(_: Path, port: int) -> Sequence[str]:
        options = ["--studies", str(studies), "--port", str(port), "--workspace", str(place / "workspace")]
        return [sys.executable, "-m", "medclipsam", "serve", *options, "--weights", str(tiny_pair)]

    server = start(command)
    server.studies = studies
    return server


def clip_in_use(server: Any) -> str:
    answer = server.infer("text_prompt", "0-00", output="json", text="lungs", steps=1)
    assert answer.ok, answer.text
    return str(answer.json()["weights"]["clip"]["sha256"])


def wait(server: Any, state: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + 400
    while time.monotonic() < end:
        task = requests.get(f"{server.url}/train/", timeout=10).json()
        if state(task):
            return dict(task)
        time.sleep(0.2)
    pytest.fail(f"The training did not get there: {task}")


def ended(task: dict[str, Any]) -> bool:
    return task["status"] not in ("SUBMITTED", "RUNNING")


def test_better_weights_are_used_by_the_running_server_and_can_be_taken_back(tuning_server):
    server = tuning_server
    own = clip_in_use(server)
    config = requests.get(f"{server.url}/info/", timeout=10).json()["trainers"]["finetune_clip"]["config"]
    assert config["loss"][0] == "dhn-nce"
    for params, code in (({"csv": "../said.csv"}, 400), ({"epochs": "many"}, 400), ({"tau": 1}, 400)):
        answer = requests.post(f"{server.url}/train/finetune_clip", json=params, timeout=30)
        assert answer.status_code == code
        assert "Traceback" not in answer.text
    # stopped on the way: nothing has changed
    slow = {**FAST, "csv": "said.csv", "epochs": 5000}
    assert requests.post(f"{server.url}/train/finetune_clip", json=slow, timeout=30).ok
    running = wait(server, lambda task: ended(task) or any(" %: epoch" in line for line in task.get("details", [])))
    assert running["status"] == "RUNNING", running
    assert requests.delete(f"{server.url}/train/", timeout=60).ok
    wait(server, ended)
    assert clip_in_use(server) == own
    # the next one takes the place of what was left, and its weights are used without a restart
    assert requests.post(f"{server.url}/train/finetune_clip", json={**FAST, "csv": "said.csv"}, timeout=30).ok
    done = wait(server, ended)
    assert done["status"] == "DONE", done
    assert any("new weights are used" in line for line in done["details"]), done
    tuned = clip_in_use(server)
    assert tuned != own
    # as `medclipsam finetune rollback` does, beside the running server
    assert ClipStore(server.studies.parent / "workspace" / "finetuned").rollback() is None
    assert clip_in_use(server) == own
