"""Rounds over HTTP, in this process: offers, leases, labels, reviews, scores, and trainings that start when due."""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from medclipsam.active.pool import Pool
from medclipsam.base.errors import InputError, OptionError, WeightsError
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.api.routes import tasks
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import BusyError
from medclipsam.server.learning import rounds as rounds_module
from medclipsam.server.learning.rounds import Rounds, RoundScheduler
from medclipsam.server.learning.trainer import candidates

Serve = Callable[..., TestClient]
ROLES_OF = {"root": "admin", "ada": "annotator", "bob": "annotator"}


def as_admin() -> dict[str, str]:
    return {"Authorization": "Bearer root-0123456789abcdef"}


def rounds_of(client: TestClient) -> Rounds:
    return client.app.state.label_app.rounds  # type: ignore[attr-defined, no-any-return]


def next_sample(client: TestClient, strategy: str = "random", **params: Any) -> dict[str, Any]:
    answer = client.post(f"/activelearning/{strategy}", json=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def save(client: TestClient, image: str, mask: np.ndarray, tag: str = "final", **params: Any) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return client.put(
        f"/datastore/label?image={image}&tag={tag}",
        data={"params": json.dumps(params)},
        files={"label": ("mask.png", buffer.getvalue())},
    )


def square(edge: int = 10) -> np.ndarray:
    mask = np.zeros((48, 48), np.uint8)
    mask[5 : 5 + edge, 5 : 5 + edge] = 1
    return mask


@pytest.fixture
def unlabelled(serve: Serve, place: Path) -> Serve:
    """Serve the discs without their labels."""

    def run(**conf: str) -> TestClient:
        for file in (place / "studies" / "labels" / "final").iterdir():
            file.unlink()
        (place / "studies" / "datastore_v2.json").unlink(missing_ok=True)
        return serve(**conf)

    return run


def test_clients_are_told_the_strategies_and_the_round(unlabelled: Serve) -> None:
    told = unlabelled().get("/info/").json()
    assert set(told["strategies"]) == {
        *("combined", "coverage", "uncertainty", "disagreement", "foreground", "random", "adjudication")
    }
    assert told["rounds"] == {"round": 1, "new_labels": 0, "retrain_after": 20}
    assert told["train_stats"]["network"]["rounds"] == told["rounds"]


@pytest.mark.parametrize("strategy", ["random", "uncertainty"])
def test_two_annotators_are_never_offered_the_same_image(unlabelled: Serve, strategy: str) -> None:
    client = unlabelled()
    offered = [next_sample(client, strategy, client_id=f"annotator {k % 2}") for k in range(12)]
    assert len({each["id"] for each in offered}) == 12
    mine = client.get("/rounds/leases", params={"client_id": "annotator 0"}).json()
    assert {lease["image"] for lease in mine} == {each["id"] for each in offered[::2]}
    assert len(client.get("/rounds/leases", params={"all": True}).json()) == 12


def test_a_lease_is_kept_given_back_and_taken_by_nobody_else(unlabelled: Serve) -> None:
    client = unlabelled()
    image = next_sample(client, client_id="ada")["id"]
    refused = client.put("/rounds/leases", params={"image": image, "client_id": "bob"})
    assert (refused.status_code, refused.json()["detail"]) == (409, f"Image {image!r} is kept for someone else.")
    assert client.put("/rounds/leases", params={"image": image, "client_id": "ada"}).status_code == 200
    assert client.delete("/rounds/leases", params={"image": image, "client_id": "bob"}).status_code == 404
    assert client.delete("/rounds/leases", params={"image": image, "client_id": "ada"}).status_code == 200
    assert client.put("/rounds/leases", params={"image": image, "client_id": "bob"}).status_code == 200
    unknown = client.put("/rounds/leases", params={"image": "nothing", "client_id": "bob"})
    assert unknown.status_code == 400
    assert "'nothing' is not among the studies" in unknown.json()["detail"]


def test_one_person_cannot_keep_all_images_from_the_others(unlabelled: Serve) -> None:
    client = unlabelled(max_leases="3")
    offered = [next_sample(client, client_id="ada") for _ in range(5)]
    # at the bound the first ones come again
    assert [each["id"] for each in offered[3:]] == [each["id"] for each in offered[:2]]
    free = sorted(set(client.get("/datastore/?output=all").json()["objects"]) - {each["id"] for each in offered})
    refused = client.put("/rounds/leases", params={"image": free[0], "client_id": "ada"})
    assert refused.status_code == 409
    assert next_sample(client, client_id="bob")["id"] in free


def test_one_person_cannot_keep_all_images_of_a_small_folder(unlabelled: Serve) -> None:
    client = unlabelled()
    images = set(client.get("/datastore/?output=all").json()["objects"])
    offered = [next_sample(client, client_id="ada")["id"] for _ in images]
    assert set(offered) == images
    taken = next_sample(client, client_id="bob")
    assert (taken["id"], taken["why"], taken["lease"]["holder"]) == (offered[0], "taken over", "bob")
    # each goes on with their own
    assert next_sample(client, client_id="bob")["id"] == offered[0]
    assert next_sample(client, client_id="ada")["id"] == offered[1]


def test_an_admin_ends_the_leases_of_others(unlabelled: Serve, tmp_path: Path) -> None:
    client = unlabelled()
    file = tmp_path / "tokens"
    file.write_text("".join(f"{name} {role} {name}-0123456789abcdef\n" for name, role in ROLES_OF.items()))
    file.chmod(0o600)
    client.app.state.access = Access(load_tokens(file))  # type: ignore[attr-defined]

    def ask(name: str, method: str, **params: Any) -> Any:
        headers = {"Authorization": f"Bearer {name}-0123456789abcdef"}
        return client.request(method, "/rounds/leases", params=params, headers=headers)

    images = sorted(client.get("/datastore/?output=all", headers=as_admin()).json()["objects"])[:4]
    for image in images:
        assert ask("ada", "PUT", image=image).status_code == 200
    assert ask("bob", "DELETE", image=images[0]).status_code == 404
    assert ask("bob", "DELETE", holder="ada").status_code == 403
    assert ask("root", "DELETE").status_code == 400
    assert {lease["image"] for lease in ask("root", "GET", all=True).json()} == set(images)
    assert ask("root", "DELETE", image=images[0]).json() == {"released": images[:1]}
    assert ask("root", "DELETE", image=images[1], holder="bob").status_code == 404
    assert ask("root", "DELETE", image=images[1], holder="ada").json() == {"released": images[1:2]}
    assert ask("root", "DELETE", holder="ada").json() == {"released": images[2:]}
    assert ask("bob", "PUT", image=images[0]).status_code == 200


def test_a_saved_label_ends_the_lease_and_stands_in_the_ledger(unlabelled: Serve) -> None:
    client = unlabelled()
    image = next_sample(client, client_id="ada")["id"]
    masked = client.post(
        f"/infer/text_prompt?image={image}&output=json",
        data={"params": json.dumps({"text": "breast tumour", "client_id": "ada"})},
    )
    assert masked.status_code == 200, masked.text
    assert save(client, image, square(), client_id="ada").status_code == 200
    (label,) = rounds_of(client).ledger.labels()
    assert (label.image, label.reader, label.source, label.absent) == (image, "ada", "zero-shot", False)
    assert label.seconds is not None
    assert label.dice is not None
    assert client.get("/rounds/leases", params={"all": True}).json() == []
    summary = client.get("/rounds/").json()
    assert (summary["labelled"], summary["rounds"][0]["readers"]) == (1, ["ada"])
    assert Image.open(io.BytesIO(client.get("/rounds/plot.png").content)).width > 500
    assert client.get("/rounds/plot.html").text.startswith("<!doctype html>")
    assert client.get("/rounds/plot.pdf").status_code == 400


def test_a_client_that_says_nothing_of_itself_is_understood(unlabelled: Serve) -> None:
    client = unlabelled()
    image = next_sample(client, client_id="slicer-1")["id"]
    assert save(client, image, square()).status_code == 200
    (label,) = rounds_of(client).ledger.labels()
    assert label.reader == "anonymous"
    assert label.seconds is not None
    assert client.get("/rounds/leases", params={"all": True}).json() == []


def test_original_labels_and_refused_ones_are_not_counted(unlabelled: Serve) -> None:
    client = unlabelled()
    assert save(client, "i01", square(), tag="original").status_code == 200
    assert save(client, "nothing", square()).status_code == 404
    assert save(client, "i01", np.zeros((7, 7), np.uint8)).status_code == 400
    assert save(client, "i01", np.full((48, 48), 231, np.uint8)).status_code == 400
    assert not rounds_of(client).is_used or rounds_of(client).ledger.labels(current=False) == []


def test_a_label_saved_twice_counts_once_and_absence_is_a_label(unlabelled: Serve) -> None:
    client = unlabelled()
    for _ in range(2):
        assert save(client, "i01", np.zeros((48, 48), np.uint8), client_id="ada").status_code == 200
    (label,) = rounds_of(client).ledger.labels(current=False)
    assert label.absent
    assert client.get("/info/").json()["rounds"]["new_labels"] == 1


def test_a_label_that_was_put_there_by_hand_is_not_asked_for(unlabelled: Serve) -> None:
    client = unlabelled()
    store = client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    for name in store.list_images():
        if name != "i07":
            Image.fromarray(square()).save(Path(store._root) / "labels" / "final" / f"{name}.png")
    store.refresh()
    assert next_sample(client, client_id="ada")["id"] == "i07"
    assert next_sample(client, client_id="bob") == {}


def test_what_was_passed_over_comes_again_where_nothing_else_is_left(unlabelled: Serve) -> None:
    client = unlabelled()
    offered = [next_sample(client, client_id="ada")["id"] for _ in range(33)]
    assert len(set(offered)) == 33
    again = [next_sample(client, client_id="ada") for _ in range(3)]
    assert [each["id"] for each in again] == offered[:3]
    assert again[0]["why"] == "offered before"
    assert next_sample(client, client_id="bob")["why"] == "taken over"


def test_a_removed_label_is_asked_for_again(unlabelled: Serve) -> None:
    client = unlabelled()
    save(client, "i01", square())
    assert client.delete("/datastore/label", params={"id": "i01", "tag": "final"}).status_code == 200
    assert rounds_of(client).ledger.labels() == []


def test_a_reviewer_rejects_and_the_image_comes_again(unlabelled: Serve) -> None:
    client = unlabelled()
    nothing = client.put("/rounds/reviews", params={"image": "i01", "verdict": "approved", "client_id": "bob"})
    assert nothing.status_code == 400
    save(client, "i01", square(), client_id="ada")
    own = client.put("/rounds/reviews", params={"image": "i01", "verdict": "approved", "client_id": "ada"})
    assert own.status_code == 400
    assert "cannot approve it too" in own.json()["detail"]
    rejected = client.put("/rounds/reviews", params={"image": "i01", "verdict": "rejected", "client_id": "bob"})
    assert rejected.json()["verdicts"] == {"bob": "rejected"}
    assert client.get("/rounds/").json()["rejected"] == 1
    # and no training learns from it until another is saved
    rounds, store = rounds_of(client), client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    assert [each.image_id for each in candidates(store, rounds.rejected())] == []
    save(client, "i01", square(12), client_id="ada")
    assert [each.image_id for each in candidates(store, rounds.rejected())] == ["i01"]


def test_validation_images_are_told_as_such(unlabelled: Serve) -> None:
    client = unlabelled()
    first = next_sample(client)
    assert (first["validation"], first["why"]) == (True, "validation")
    assert rounds_of(client).networks.store.split().holds(f"image:{first['id']}")


def test_the_published_network_scores_what_has_no_label(unlabelled: Serve) -> None:
    client = unlabelled()
    rounds = rounds_of(client)
    save(client, "i01", square())
    rounds.look()
    done = 0
    while step := rounds.scorer.step("uncertainty"):
        done += step
    assert done == 32
    scores = rounds.ledger.scores()
    assert "i01" not in scores
    assert all(score.total > 0 and set(score.classes) == {"breast tumour"} for score in scores.values())
    best = max((image for image in scores if not rounds.networks.store.split().holds(f"image:{image}")),
               key=lambda image: scores[image].total)  # fmt: skip
    offers = [next_sample(client, "uncertainty") for _ in range(4)]
    assert next(each for each in offers if each["why"] == "strategy")["id"] == best


def test_disagreement_is_with_the_zero_shot_mask_where_there_is_one(unlabelled: Serve) -> None:
    client = unlabelled()
    rounds = rounds_of(client)
    assert save(client, "i02", np.zeros((48, 48), np.uint8), tag="original").status_code == 200
    rounds.look()
    while rounds.scorer.step("uncertainty"):
        pass
    scores = rounds.ledger.scores()
    assert scores["i02"].found
    assert scores["i02"].disagreement == 1.0
    assert scores["i03"].disagreement is None


def score(client: TestClient, method: str, **query: Any) -> dict[str, Any]:
    """Score to the end, and return the task as it is told then."""
    answer = client.post(f"/scoring/{method}", params=query)
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 60
    while (told := client.get("/scoring/").json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return dict(told)


@pytest.mark.parametrize("method", ["embedding", "presence", "uncertainty"])
def test_a_scoring_method_scores_what_has_no_score_and_tells_how_far_it_is(unlabelled: Serve, method: str) -> None:
    client = unlabelled(targets="breast tumour")
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    assert set(client.get("/info/").json()["scoring"]) == {"embedding", "presence", "uncertainty", "disagreement"}
    told = score(client, method)
    assert (told["status"], told["request"]["method"]) == ("DONE", method)
    assert told["result"] == {"images": 33, "left_out": 0}
    assert told["progress"] == {"done": 33, "total": 33, "fraction": 1.0}
    ledger = rounds_of(client).ledger
    kept = {
        "embedding": len(ledger.embeddings()),
        "presence": sum(row["presence"] is not None for row in ledger.images()),
        "uncertainty": len(ledger.scores()),
    }
    assert kept == {**dict.fromkeys(kept, 0), method: 33}
    # nothing is scored twice
    assert client.post(f"/scoring/{method}", params={"run_sync": True}).json() == {"images": 0, "left_out": 0}


def test_scores_of_disagreement_are_made_where_no_zero_shot_mask_lies(unlabelled: Serve) -> None:
    client = unlabelled()
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    score(client, "uncertainty")
    ledger = rounds_of(client).ledger
    assert {each.disagreement for each in ledger.scores().values()} == {None}
    assert score(client, "disagreement")["result"]["images"] == 33
    found = {image: each.disagreement for image, each in ledger.scores().items()}
    assert all(value is not None and 0 <= value <= 1 for value in found.values())
    assert len(set(found.values())) > 5
    assert client.get("/datastore/").json()["label_tags"] == {}
    offered = next_sample(client, "disagreement")
    while offered["why"] != "strategy":
        offered = next_sample(client, "disagreement")
    split = rounds_of(client).networks.store.split()
    free = {image: value for image, value in found.items() if not split.holds(f"image:{image}")}
    assert offered["weight"] == max(free.values())  # type: ignore[type-var]


def test_scoring_is_refused_in_a_sentence_where_it_cannot_be(unlabelled: Serve, place: Path) -> None:
    import shutil

    shutil.rmtree(place / "networks" / "network")
    client = unlabelled()
    unknown = client.post("/scoring/cleverest")
    assert unknown.status_code == 404
    assert "allowed: embedding, presence, uncertainty, disagreement" in unknown.json()["detail"]
    assert client.post("/scoring/embedding", json={"colour": 1}).status_code == 400
    refused = client.post("/scoring/uncertainty")
    assert (refused.status_code, "No network has been published" in refused.text) == (409, True)
    assert client.post("/scoring/presence").status_code == 409
    assert client.get("/scoring/").status_code == 404
    assert client.delete("/scoring/").json() is None
    every = client.post("/scoring/").json()
    assert every["embedding"]["result"]["status"] in ("SUBMITTED", "RUNNING")
    assert "--targets" in every["presence"]["detail"]


def test_a_scoring_lets_others_go_first_waits_for_trainings_and_can_be_stopped(
    unlabelled: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = unlabelled()
    runs = {"a training": object()}
    monkeypatch.setattr(tasks, "processes", lambda method: runs)
    begun = client.post("/scoring/embedding").json()
    assert client.post("/scoring/uncertainty").status_code == 429
    end = time.monotonic() + 20
    while "waits for the training" not in str(client.get("/scoring/").json()["details"]):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.get("/scoring/", params={"check_if_running": True}).json()["id"] == begun["id"]
    stopped = client.delete("/scoring/").json()
    assert (stopped["id"], stopped["status"]) == (begun["id"], "STOPPED")
    assert client.get("/scoring/", params={"check_if_running": True}).status_code == 404
    runs.clear()
    assert rounds_of(client).ledger.embeddings() == {}
    assert score(client, "embedding")["status"] == "DONE"
    assert [task["status"] for task in client.get("/scoring/", params={"all": True}).json()] == ["STOPPED", "DONE"]


def test_an_image_that_cannot_be_read_is_left_out_and_a_busy_server_is_not(
    unlabelled: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = unlabelled()
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    rounds = rounds_of(client)
    rounds.look()
    with monkeypatch.context() as patch:
        patch.setattr(rounds.scorer._pipeline, "embed", fail(BusyError("The models gave way.", 1)))
        with pytest.raises(BusyError):
            rounds.scorer.step("embedding")
    Path(client.app.state.label_app.datastore().get_image_uri("i00")).write_bytes(b"no picture")  # type: ignore[attr-defined]
    assert score(client, "embedding")["result"] == {"images": 33, "left_out": 1}
    assert "i00" not in rounds.ledger.embeddings()
    with monkeypatch.context() as patch:
        patch.setattr(rounds.scorer, "step", fail(WeightsError("The weights are damaged.")))
        told = score(client, "uncertainty")
    assert (told["status"], told["details"]) == ("ERROR", ["The weights are damaged."])


def test_an_image_that_cannot_be_read_is_offered_again_only_when_its_file_changes(unlabelled: Serve) -> None:
    client = unlabelled()
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    store = client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    files = {image: Path(store.get_image_uri(image)) for image in store.list_images()}
    kept = {image: file.read_bytes() for image, file in files.items()}
    readable = set(sorted(files)[:2])
    for image in files.keys() - readable:
        # as long as it was, with a pixel that its checksum does not fit
        content = bytearray(kept[image])
        content[content.index(b"IDAT") + 9] ^= 0xFF
        files[image].write_bytes(content)
    offered = [next_sample(client, client_id="ada")["id"] for _ in range(4)]
    assert set(offered) == readable
    assert set(client.get("/datastore/").json()["unreadable"]["images"]) == files.keys() - readable
    back = sorted(files.keys() - readable)[0]
    files[back].write_bytes(kept[back])
    rounds_of(client).look()
    assert next_sample(client, client_id="ada")["id"] == back
    assert back not in client.get("/datastore/").json()["unreadable"]["images"]


def test_an_image_whose_patient_cannot_be_read_is_no_part_of_the_rounds_until_it_can(
    unlabelled: Serve, hide_patients: set[str]
) -> None:
    hide_patients.add("i03")
    client = unlabelled()
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    rounds = rounds_of(client)
    images, _ = rounds._list_studies()
    assert "i03" not in images
    assert "i04" in images
    hide_patients.clear()
    assert "i03" in rounds._list_studies()[0]


def fail(error: Exception) -> Callable[..., Any]:
    def act(*arguments: Any, **more: Any) -> Any:
        raise error

    return act


def test_presence_is_asked_for_what_the_settings_name(unlabelled: Serve) -> None:
    client = unlabelled(targets="breast tumour")
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    rounds = rounds_of(client)
    rounds.look()
    other = {"targets": [{"name": "heart", "presence_score": 0.1, "presence_threshold": 0.5}]}
    rounds.presence("i01", other)
    assert all(row["presence"] is None for row in rounds.ledger.images())
    asked = {"targets": [{"name": "breast tumour", "presence_score": 0.1, "presence_threshold": 0.5}]}
    rounds.presence("i01", {"targets": asked["targets"] + other["targets"]})
    assert {row["image"] for row in rounds.ledger.images() if row["presence"] is not None} == {"i01"}


def test_what_is_prepared_beside_the_requests_keeps_none_of_them_waiting(
    unlabelled: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = unlabelled()
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    rounds = rounds_of(client)
    rounds.prepare()
    assert not rounds.is_used
    first = next_sample(client, client_id="ada")["id"]
    store = client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    store.add_image("late", store.get_image_uri("i01"), {})
    loading, go_on = threading.Event(), threading.Event()

    def load(*arguments: Any) -> Pool:
        loading.set()
        assert go_on.wait(20)
        return Pool(*arguments)

    monkeypatch.setattr(rounds_module, "Pool", load)
    preparing = threading.Thread(target=rounds.prepare)
    preparing.start()
    assert loading.wait(20)
    second = next_sample(client, client_id="ada")["id"]
    go_on.set()
    preparing.join(20)
    offered = {first, second, *(next_sample(client, client_id="ada")["id"] for _ in range(32))}
    assert len(offered) == 34
    assert "late" in offered


class Training:
    """A training that a test lets run and end."""

    def __init__(self) -> None:
        self.starts = 0
        self.runs: str | None = None
        self.refused = ""

    def start(self) -> None:
        if self.refused:
            raise InputError(self.refused)
        self.starts += 1
        self.runs = "network"


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture
def keeper(unlabelled: Serve, training: Training) -> RoundScheduler:
    client = unlabelled(retrain_after="3")
    client.app.state.keeper.stop()  # type: ignore[attr-defined]
    for name in training_images(client, 3):
        save(client, name, square(), client_id="ada")
    return RoundScheduler(
        rounds_of(client), client.app.state.queue, training.start, lambda: training.runs, lambda image, job: None  # type: ignore[attr-defined]
    )  # fmt: skip


def training_images(client: TestClient, count: int, first: int = 0) -> list[str]:
    split = rounds_of(client).networks.store.split()
    names = [f"i{number:02d}" for number in range(32)]
    return [name for name in names if not split.holds(f"image:{name}")][first : first + count]


def test_a_training_starts_by_itself_once_and_its_failure_is_kept(keeper: RoundScheduler, training: Training) -> None:
    keeper.follow()
    keeper.follow()
    assert training.starts == 1
    ledger = keeper._rounds.ledger
    assert [each.state for each in ledger.rounds()] == ["training", "open"]
    assert ledger.rounds()[0].network_before == "network version 1"
    training.runs = None
    keeper.follow()
    assert ledger.rounds()[0].state == "failed"
    keeper.follow()
    assert training.starts == 1


def test_a_training_that_ended_with_a_network_closes_its_round(keeper: RoundScheduler, training: Training) -> None:
    import shutil

    keeper.follow()
    store = keeper._rounds.networks.store
    first = store.get("network", 1)
    made = store.work("network", "again") / "made"
    shutil.copytree(first.folder, made)
    about = {**first.to_dict(), "status": "refused", "reason": "It is worse."}
    del about["version"], about["created"]
    assert store.add(made, about, expected=1) is not None
    training.runs = None
    keeper.follow()
    ended = keeper._rounds.ledger.rounds()[0]
    assert (ended.state, ended.network_after) == ("refused", "network version 3")
    assert ended.metrics["reason"] == "It is worse."


def next_keeper(keeper: RoundScheduler, training: Training, grace: float) -> RoundScheduler:
    """Return the keeper of a server that starts after the first one was killed."""
    return RoundScheduler(
        keeper._rounds, keeper._queue, training.start, lambda: training.runs, lambda image, job: None, grace=grace
    )


def test_a_training_that_ended_with_its_server_is_started_again(keeper: RoundScheduler, training: Training) -> None:
    keeper.follow()
    training.runs = None
    next_keeper(keeper, training, grace=0).follow()
    assert training.starts == 2
    assert [each.state for each in keeper._rounds.ledger.rounds()] == ["interrupted", "training", "open"]


def test_a_training_that_outlived_its_server_is_not_started_twice(keeper: RoundScheduler, training: Training) -> None:
    keeper.follow()
    # it still comes up and has not taken its lock
    training.runs = None
    later = next_keeper(keeper, training, grace=60)
    later.follow()
    assert keeper._rounds.ledger.rounds()[0].state == "training"
    training.runs = "network"
    later.follow()
    assert training.starts == 1
    # now that it was seen to run, its end without a network is a failure
    training.runs = None
    later.follow()
    assert keeper._rounds.ledger.rounds()[0].state == "failed"


def test_a_training_that_cannot_start_is_told_and_waits_for_more(keeper: RoundScheduler, training: Training) -> None:
    training.refused = "A training would need 9.0 GB of main memory, and 1.0 GB are free."
    keeper.follow()
    failed = keeper._rounds.ledger.rounds()[0]
    assert (failed.state, failed.metrics["reason"]) == ("failed", training.refused)
    training.refused = ""
    keeper.follow()
    assert training.starts == 0


def test_a_training_by_hand_takes_the_labels_of_its_round(keeper: RoundScheduler, training: Training) -> None:
    training.runs = "network"
    keeper.follow()
    assert training.starts == 0
    assert keeper._rounds.ledger.rounds()[0].state == "training"
    assert keeper._rounds.ledger.new_labels() == 0


def test_another_training_is_waited_for_and_is_no_round(keeper: RoundScheduler, training: Training) -> None:
    training.runs = "finetune_clip"
    keeper.follow()
    assert training.starts == 0
    assert [each.state for each in keeper._rounds.ledger.rounds()] == ["open"]
    training.runs = None
    keeper.follow()
    assert training.starts == 1


def test_the_route_asks_the_trainer_with_its_own_options(unlabelled: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = unlabelled(retrain_after="2", retrain_options='{"epochs": 7}')
    asked: list[Any] = []
    monkeypatch.setattr(tasks, "_start", lambda app, method, request, *more: asked.append((method, request)))
    for name in training_images(client, 2):
        save(client, name, square())
    end = time.monotonic() + 60
    while not asked and time.monotonic() < end:
        time.sleep(0.1)
    ((method, request),) = asked
    assert (method, request["model"], request["epochs"]) == ("train", "network", 7)


def test_options_that_the_trainer_does_not_take_are_refused_at_the_start(unlabelled: Serve) -> None:
    with pytest.raises(InputError, match="'speed'"):
        unlabelled(retrain_options='{"speed": 3}')
    with pytest.raises(OptionError, match="epochs"):
        unlabelled(retrain_options='{"epochs": -3}')


def test_masks_wait_where_they_are_wanted(unlabelled: Serve) -> None:
    client = unlabelled(prelabels="2", targets="breast tumour")
    next_sample(client, "uncertainty")
    store = client.app.state.label_app.datastore()  # type: ignore[attr-defined]
    end = time.monotonic() + 120
    while len(store.get_labeled_images("network")) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    waiting = store.get_labeled_images("network")
    assert len(waiting) >= 2
    save(client, waiting[0], square(), client_id="ada")
    (label,) = rounds_of(client).ledger.labels()
    assert label.source == "network version 1"
    assert label.dice is not None


def test_settings_that_cannot_be_are_refused() -> None:
    for key, value in (
        ("retrain_after", "-1"),
        ("lease_minutes", "soon"),
        ("prelabels", "2.5"),
        ("sampling_seed", "x"),
    ):
        with pytest.raises(OptionError, match="cannot be"):
            AppConf.from_strings({key: value})
    with pytest.raises(OptionError, match="'retrain_options' cannot be"):
        AppConf.from_strings({"retrain_options": "epochs=3"})
    assert AppConf.from_strings({"retrain_after": "7", "sampling_seed": "3"}).rounds.sampling_seed == 3
