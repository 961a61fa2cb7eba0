import json
import multiprocessing
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclipsam.base.errors import CancelledError, InputError, OptionError
from medclipsam.base.metrics import dice
from medclipsam.imaging import read_image
from medclipsam.targets import TargetSet
from medclipsam.training.collect import read_studies
from medclipsam.training.ensemble import Ensemble
from medclipsam.training.lock import TrainingLock, TrainingRunsError, training_state
from medclipsam.training.options import TrainingOptions
from medclipsam.training.run import judge_again, train_network
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.training.store import Network, NetworkStore

SPLIT = Split(seed=4, share=0.35)


@pytest.fixture
def discs(studies: Any) -> Any:
    """32 discs; 11 of them in the validation patients."""
    for number in range(32):
        studies.add(f"i{number:02d}", number, "final")
    return studies


@pytest.fixture
def store(tmp_path: Path) -> NetworkStore:
    return NetworkStore(tmp_path / "workspace" / "networks")


def train(studies: Any, store: NetworkStore, options: Mapping[str, Any], **more: Any) -> Network:
    request = Request.from_mapping(options)
    return train_network(
        lambda: read_studies(studies.folder), TargetSet.load(), store, request, split=more.pop("split", SPLIT), **more
    )


def test_a_network_is_trained_published_and_replaced(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    told: list[Mapping[str, Any]] = []
    first = train(discs, store, {**tiny, "tracking": "tensorboard"}, tell=told.append)
    assert (first.status, first.version, first.parent) == ("published", 1, None)
    assert store.current() == first
    assert first.metrics["verdict"]["n"] == first.data["validation"] >= 10
    assert first.identity == Ensemble.load(first.folder, device="cpu").identity
    # it does what it was trained for, on an image that nobody has labelled
    picture, mask = discs.draw(500)
    from PIL import Image

    Image.fromarray(picture).save(discs.folder / "new.png")
    found = Ensemble.load(first.folder, device="cpu").predict(read_image(discs.folder / "new.png"))
    assert dice(found.labels[0] == 1, mask == 1) > 0.8
    assert first.metrics["dice"]["breast tumour"] > 0.8

    states = [state["state"] for state in told]
    assert list(dict.fromkeys(states)) == ["collecting", "planning", "training", "validating", "done"]
    epochs = [state["epoch"] for state in told if state.get("stage") == "train" and state["state"] == "training"]
    assert epochs[-1] == tiny["epochs"]
    assert training_state(store.folder)["version"] == 1
    assert any((store.folder / "tracking" / "tensorboard").rglob("events.*"))
    assert not any((store.folder / "network" / ".work").glob("*"))

    report = json.loads((first.folder / "report.json").read_text())
    assert len(report["training"]) == first.data["training"]["final"]
    assert [entry["epoch"] for entry in report["curve"]] == list(range(1, tiny["epochs"] + 1))
    assert "breast tumour" in (first.folder / "report.md").read_text()
    with Image.open(first.folder / "curve.png") as curve:
        assert curve.size[0] > 500

    # a child that has learned nothing is held against its parent, on the same images, and refused
    second = train(discs, store, {**tiny, "epochs": 2, "keep": 1, "iterations": 1, "learning_rate": 1e-6})
    assert (second.status, second.parent) == ("refused", 1)
    assert second.metrics["images"]["parent"] == first.metrics["images"]["child"]
    assert store.current() == first
    # a pseudo-label that the published network contradicts is not trained on, one that it confirms is
    discs.add("sure", 600, "original", info=discs.evidence())
    discs.add("torn", 601, None)
    discs.label("torn", discs.draw(602)[1], "original", discs.evidence())
    short = {**tiny, "epochs": 2, "keep": 1, "iterations": 1}
    third = train(discs, store, short)
    left_out = json.loads((third.folder / "report.json").read_text())["left_out"]
    assert [(each["image"], each["reason"]) for each in left_out] == [("torn", "agreement")]
    assert third.data["training"]["original"] == 1

    # by today's images the second is still no better; a hand may publish it all the same, and take it back
    verdict = judge_again(store, "network", 2, TargetSet.load(), read_studies(discs.folder), "cpu")
    assert verdict.status == "refused"
    assert verdict.child == pytest.approx(second.metrics["verdict"]["child"])
    store.publish("network", 2, "by hand")
    assert store.rollback().version == 1


def test_few_validation_images_make_it_unvalidated(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    network = train(discs, store, tiny, split=Split(seed=0, share=0.1))
    assert network.status == "unvalidated"
    assert store.current() is None
    assert store.newest() == network


def test_a_stopped_training_is_gone_on_with(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    whole = train(discs, store, {**tiny, "name": "network_whole"})
    told: list[Mapping[str, Any]] = []

    def after_three() -> bool:
        return bool(told) and told[-1].get("stage") == "train" and (told[-1].get("epoch") or 0) >= 3

    with pytest.raises(CancelledError):
        train(discs, store, tiny, tell=told.append, should_stop=after_three)
    assert store.names() == ["network_whole"]
    assert training_state(store.folder)["state"] == "stopped"
    told.clear()
    network = train(discs, store, tiny, tell=told.append)
    first = next(state for state in told if state.get("stage") == "train")
    assert first["epoch"] == 4
    assert network.identity == whole.identity


def test_other_labels_make_a_training_begin_anew(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    told: list[Mapping[str, Any]] = []
    with pytest.raises(CancelledError):
        train(discs, store, tiny, should_stop=lambda: bool(told) and told[-1].get("epoch") == 2, tell=told.append)
    studied = next(iter((store.folder / "network" / ".work").iterdir()))
    discs.label("i01", np.zeros((48, 48), np.uint8), "final")
    told.clear()
    with pytest.raises(CancelledError):
        train(discs, store, tiny, should_stop=lambda: bool(told) and told[-1].get("epoch") == 1, tell=told.append)
    assert not studied.exists()


KILLED = """
import json, sys
from pathlib import Path
from medclipsam.targets import TargetSet
from medclipsam.training.collect import read_studies
from medclipsam.training.run import train_network
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.training.store import NetworkStore
studies, networks, options = sys.argv[1:]
train_network(lambda: read_studies(Path(studies)), TargetSet.load(), NetworkStore(Path(networks)),
              Request.from_mapping(json.loads(options)), split=Split(seed=4, share=0.35),
              tell=lambda state: print(json.dumps(state), flush=True))
"""


def test_a_killed_training_leaves_what_was_and_is_gone_on_with(
    discs: Any, store: NetworkStore, tiny: dict[str, Any]
) -> None:
    before = train(discs, store, {**tiny, "epochs": 2, "keep": 1})
    listed = sorted(str(path) for path in (store.folder / "network" / "0001").iterdir())
    command = [sys.executable, "-c", KILLED, str(discs.folder), str(store.folder), json.dumps({**tiny, "epochs": 60})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        state = json.loads(line)
        if state.get("stage") == "train" and state["epoch"] >= 3:
            break
    with pytest.raises(TrainingRunsError, match=f"Process {process.pid}"):
        train(discs, store, tiny)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert store.current() == before
    assert store.history() == [before]
    assert sorted(str(path) for path in (store.folder / "network" / "0001").iterdir()) == listed
    told: list[Mapping[str, Any]] = []
    with pytest.raises(CancelledError):
        train(
            discs,
            store,
            {**tiny, "epochs": 60},
            tell=told.append,
            should_stop=lambda: told[-1].get("stage") == "train",
        )
    assert next(state["epoch"] for state in told if state.get("stage") == "train") >= 4


def test_a_failing_training_says_why_and_leaves_the_lock(
    studies: Any, store: NetworkStore, tiny: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train(studies, store, tiny)
    state = training_state(store.folder)
    assert state["state"] == "failed"
    assert "nothing to train on" in state["reason"]
    with TrainingLock(store.folder, "next"):
        pass


def test_a_network_goes_on_with_its_own_labels(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    train(discs, store, {**tiny, "epochs": 2, "keep": 1, "targets": "breast mass"})
    with pytest.raises(InputError, match=r"'network' segments breast tumour.*another name"):
        train(discs, store, {**tiny, "targets": "skin"})
    again = train(discs, store, {**tiny, "epochs": 2, "keep": 1, "seed": 1, "targets": "breast lesion"})
    assert again.labels == {"breast tumour": 1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": 3}, "'epoch'"),
        ({"name": "../x"}, "'name'"),
        ({"modality": "ultrasound"}, "'modality'"),
        ({"min_presence": "1.5"}, "'min_presence'"),
        ({"tracking": "wandb"}, "'tracking'"),
        ({"resume": "perhaps"}, "'resume'"),
        ({"processes": 0}, "'processes'"),
        ({"epochs": "many"}, "'epochs'"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        Request.from_mapping(values)


def test_options_come_as_strings_and_lists() -> None:
    request = Request.from_mapping(
        {"targets": "left lung; heart,spine", "tracking": ["none", "mlflow"], "resume": "false", "epochs": "7"}
    )
    assert request.run.label_names == ("left lung", "heart", "spine")
    assert (request.run.resume, request.training.epochs) == (False, 7)
    assert request.to_dict() == {**request.run.to_dict(), **TrainingOptions(epochs=7).to_dict()}


def test_two_processes_train_one_network(discs: Any, store: NetworkStore, tiny: dict[str, Any]) -> None:
    told: list[Mapping[str, Any]] = []
    short = {**tiny, "epochs": 2, "keep": 1, "iterations": 2, "processes": 2}
    network = train(discs, store, short, tell=told.append)
    assert json.loads((network.folder / "training.json").read_text())["processes"] == 2
    epochs = [state["epoch"] for state in told if state.get("stage") == "train" and state["state"] == "training"]
    assert epochs == [1, 2]
    assert not multiprocessing.active_children()


def test_mlflow_notes_the_curve(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    from medclipsam.training.tracking import tracker

    with tracker("mlflow", tmp_path / "tracking", "run", {"epochs": 3}) as curves:
        for epoch in (1, 2):
            curves.log(epoch, {"loss": 1 / epoch, "dice": None})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medclipsam")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3"}
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]


def test_the_command_line(discs: Any, tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from medclipsam.cli.main import main

    place = ["--studies", str(discs.folder), "--workspace", str(tmp_path / "ws")]
    chosen = {**tiny, "epochs": 2, "keep": 1}.items()
    options = [part for key, value in chosen for part in ("--" + key.replace("_", "-"), str(value))]
    assert main(["train", "run", *place, *options, "--validation-share", "0.35", "--validation-seed", "4"]) == 0
    assert "network version 1 (breast tumour): published." in capsys.readouterr().out
    assert main(["train", "run", *place, *options, "--learning-rate", "1e-8", "--restart-rate", "1e-8"]) == 1
    assert ": refused." in capsys.readouterr().out
    assert main(["train", "history", *place]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("*    1 ")
    assert second.startswith("     2 ")
    assert main(["train", "history", *place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["current"] == 1
    assert main(["train", "show", *place[2:]]) == 0
    assert capsys.readouterr().out.startswith("# Training of network\n\n**published**")
    assert main(["train", "publish", "2", *place, "--device", "cpu"]) == 1
    assert main(["train", "publish", "2", *place, "--force"]) == 0
    assert main(["train", "rollback", *place]) == 0
    assert capsys.readouterr().out.endswith("Version 1 of network is served again.\n")
    for wrong, words in (
        (["train", "rollback", *place], "no network 'network' to go back to"),
        (["train", "show", "7", *place], "no version 7"),
        (["train", "run", *place, "--validation-share", "0.2"], "share 0.35"),
        (["train", "history"], "--studies FOLDER"),
        (["train", "run", "--studies", str(tmp_path / "none")], "none"),
    ):
        assert main(wrong) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
