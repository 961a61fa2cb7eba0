"""Several readers of one image over HTTP: two annotators, a reviewer, and what each of them is shown and offered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from fastapi.testclient import TestClient
from scipy import ndimage

from medclipsam.active.second_reads import is_read_twice
from medclipsam.cli.main import main
from medclipsam.imaging import read_image
from medclipsam.imaging.frames import decode_runs
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.learning.trainer import candidates
from medclipsam.server.studies.exchange import FolderLabelStore
from medclipsam.training.collect import read_studies

ROLES = {"ada": "annotator", "ben": "annotator", "rob": "reviewer", "uma": "user"}
SHAPE = (3, 40, 60)


class Person:
    """Somebody who has logged in."""

    def __init__(self, client: TestClient, name: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {name}-0123456789abcdef"}

    def ask(self, method: str, path: str, **more: Any) -> Any:
        return self._client.request(method, path, headers=self._headers, **more)

    def next(self, strategy: str = "random") -> dict[str, Any]:
        answer = self.ask("POST", f"/activelearning/{strategy}", json={})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def label(self, image: str = "stack") -> Any:
        return self.ask("GET", f"/viewer/api/labels/{image}")

    def save(self, *segments: Any, image: str = "stack", base: str | None = None, **more: Any) -> Any:
        body = {"segments": list(segments), "base": base, **more}
        return self.ask("PUT", f"/viewer/api/labels/{image}", json=body)

    def settle(self, image: str = "stack", **given: Any) -> Any:
        return self.ask("PUT", f"/readers/{image}/consensus", json=given)


@pytest.fixture
def tokens(tmp_path: Path) -> Access:
    file = tmp_path / "tokens"
    file.write_text("".join(f"{name} {role} {name}-0123456789abcdef\n" for name, role in ROLES.items()))
    file.chmod(0o600)
    return Access(load_tokens(file))


Team = Callable[..., dict[str, Person]]


@pytest.fixture
def team(make_client: Any, tokens: Access) -> Team:
    def make(**conf: str) -> dict[str, Person]:
        client = make_client(tokens, **conf)
        return {name: Person(client, name) for name in ROLES}

    return make


def segment(name: str = "heart", plane: int = 1, *, start: int = 605, width: int = 20) -> dict[str, Any]:
    """Return a square of 20 rows on one plane."""
    return {"name": name, "planes": [{"plane": plane, "runs": [n for k in range(20) for n in (start + 60 * k, width)]}]}


def drawn(segments: list[dict[str, Any]], name: str = "heart") -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for each in segments:
        for plane in each["planes"] if each["name"] == name else ():
            mask[plane["plane"]] = decode_runs(plane["runs"], SHAPE[1:], "it")
    return mask


def test_a_second_read_is_blind_and_waits_for_its_consensus(team: Team, studies: Path, tmp_path: Path) -> None:
    people = team(second_read_share="1")
    ada, ben, rob = people["ada"], people["ben"], people["rob"]
    first = ada.next()["id"]
    ada.save(segment(), image=first)
    # not the same person again, and another first of all
    assert ada.next()["id"] != first
    again = ben.next()
    assert (again["id"], again["why"]) == (first, "second read")
    assert ben.label(first).status_code == 204
    for path in ("/datastore/label", "/datastore/label/info"):
        assert ben.ask("GET", path, params={"label": first, "tag": "final"}).status_code == 404
    assert ben.ask("GET", "/datastore/label", params={"label": first, "tag": "final", "version": 1}).status_code == 404
    saved = ben.save(segment(start=606), image=first)
    assert saved.status_code == 200
    # each goes on with their own
    assert ada.label(first).json()["segments"] == [segment()]
    assert ben.label(first).json()["segments"] == [segment(start=606)]
    assert ada.ask("GET", "/datastore/label/versions", params={"label": first}).json()[0]["saved_by"] == "ada"
    assert ben.ask("GET", "/datastore/label/versions", params={"label": first}).json() == []
    # neither of them is trained on
    app = ada._client.app.state.label_app  # type: ignore[attr-defined]
    assert [each.labels for each in candidates(app.datastore()) if each.image_id == first] == []
    assert [each for each in read_studies(studies) if "final" in each.labels] == []
    told = ada.ask("GET", "/rounds/").json()
    assert (told["waiting"], told["new"], told["labelled"]) == (1, 0, 0)
    assert ada.ask("GET", "/viewer/api/state").json()["waiting"] == 1
    # a reviewer is offered it before anything else, and sees both
    offered = rob.next()
    assert (offered["id"], offered["why"]) == (first, "adjudication")
    both = rob.ask("GET", f"/readers/{first}/labels").json()
    assert {each["reader"]: each["segments"] for each in both["readers"]} == {
        "ada": [segment()],
        "ben": [segment(start=606)],
    }
    assert both["dice"] == pytest.approx(2 * 19 / (20 + 20))
    seen = {each["reader"]: each["version"] for each in both["readers"]}
    assert rob.ask("GET", f"/viewer/api/readers/{first}").json() == both
    assert {person.ask("GET", f"/viewer/api/readers/{first}").status_code for person in (ada, ben)} == {204}
    done = rob.settle(first, method="reader", reader="ada", seen=seen).json()
    assert (done["waiting"], done["consensus"]["by"], done["consensus"]["method"]) == (False, "rob", "reader")
    assert done["consensus"]["readings"] == seen
    for person in (ada, ben, rob):
        label = person.label(first).json()
        assert (label["by"], label["consensus"], label["segments"]) == ("rob", True, [segment()])
    (trained,) = [each for each in read_studies(studies) if "final" in each.labels]
    assert trained.labels["final"].info["consensus"]["method"] == "reader"
    told = ada.ask("GET", "/rounds/").json()
    assert (told["waiting"], told["new"], told["labelled"], told["consensus"]) == (0, 1, 1, 1)
    # how, by whom and of which labels is in the ledger too
    (noted,) = app.rounds.ledger.labels()
    assert (noted.reader, noted.method, set(noted.readings)) == ("rob", "reader", {"ada", "ben"})
    assert rob.ask("GET", f"/viewer/api/readers/{first}").status_code == 204
    # a further label of a reader opens it again
    base = ben.label(first).json()["version"]
    assert ben.save(segment(start=607), image=first, base=base).status_code == 200
    assert ada.ask("GET", "/readers").json()[0]["image"] == first


def test_agreement_is_that_of_simpleitk_in_mm(team: Team, studies: Path) -> None:
    people = team()
    people["ada"].save(segment(), segment("left lung", 0))
    people["ben"].save(segment(start=608, width=15), as_new=True)
    told = people["uma"].ask("GET", "/readers/stack").json()
    assert [each["reader"] for each in told["readers"]] == ["ada", "ben"]
    # who did not look for a structure is in no pair
    assert told["structures"].keys() == {"heart"}
    (pair,) = told["structures"]["heart"]["pairs"]
    one, other = drawn([segment()]), drawn([segment(start=608, width=15)])
    images = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (one, other)]
    for image in images:
        image.SetSpacing((0.7, 0.8, 2.5))
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    assert pair["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    # on one plane each voxel is of the boundary
    apart = [
        np.percentile(ndimage.distance_transform_edt(~far, sampling=(2.5, 0.8, 0.7))[near], 95)
        for near, far in ((one, other), (other, one))
    ]
    assert pair["hd95_mm"] == pytest.approx(max(apart), rel=1e-5)
    table = np.array([[np.sum(a & b) for b in (other, ~other)] for a in (one, ~one)], float) / one.size
    chance = table.sum(axis=1) @ table.sum(axis=0)
    assert pair["kappa"] == pytest.approx((np.trace(table) - chance) / (1 - chance))


def test_the_worst_agreement_is_adjudicated_first(team: Team) -> None:
    people = team()
    for image, start in (("stack", 606), ("chest", 612), ("film", 605)):
        plane = 1 if image == "stack" else 0
        assert people["ada"].save(segment(plane=plane), image=image).status_code == 200
        assert people["ben"].save(segment(plane=plane, start=start), image=image, as_new=True).status_code == 200
    listed = people["rob"].ask("GET", "/readers").json()
    assert [each["image"] for each in listed] == ["chest", "stack", "film"]
    offered = [people["rob"].next("adjudication") for _ in range(3)]
    assert [each["id"] for each in offered] == ["chest", "stack", "film"]
    assert people["ada"].ask("POST", "/activelearning/adjudication", json={}).status_code == 403
    # who reads is offered no adjudication
    assert people["ben"].next() == {}


@pytest.mark.parametrize("method", ["staple", "majority", "drawn"])
def test_a_consensus_by_computation_or_by_hand(team: Team, method: str) -> None:
    people = team()
    people["ada"].save(segment())
    people["ben"].save(segment(start=610), as_new=True)
    more = {"segments": [segment(start=607), segment("my mass", 2, start=0, width=3)]} if method == "drawn" else {}
    done = people["rob"].settle(method=method, **more)
    assert done.status_code == 200, done.text
    label = people["ada"].label().json()
    found, both = drawn(label["segments"]), [drawn([segment()]), drawn([segment(start=610)])]
    if method == "drawn":
        assert np.array_equal(found, drawn([segment(start=607)]))
        assert drawn(label["segments"], "my mass")[2].sum() == 60
    elif method == "majority":
        assert np.array_equal(found, both[0] & both[1])
    else:
        assert not (found & ~(both[0] | both[1])).any()
        assert (found | ~(both[0] & both[1])).all()
    # approved or rejected as any label; a rejected consensus waits for another one
    reviewed = people["rob"].ask("PUT", "/rounds/reviews", params={"image": "stack", "verdict": "rejected"})
    assert reviewed.status_code == 200
    assert [each["image"] for each in people["rob"].ask("GET", "/readers").json()] == ["stack"]
    assert people["ada"].label().json()["by"] == "ada"


def test_who_may_settle_and_what_is_refused(team: Team) -> None:
    people = team()
    ada, ben, rob = people["ada"], people["ben"], people["rob"]
    assert rob.settle(method="staple").status_code == 404
    ada.save(segment())
    assert rob.settle(method="staple").status_code == 404
    # a reviewer who reads is a reader
    rob.save(segment(start=610), as_new=True)
    assert rob.settle(method="staple").status_code == 403
    assert rob.ask("GET", "/readers/stack/labels").status_code == 403
    ben.save(segment(start=611), as_new=True)
    assert ada.settle(method="staple").status_code == 403
    assert ada.ask("GET", "/readers/stack/labels").status_code == 403
    # none of them can be approved by itself
    assert rob.ask("PUT", "/rounds/reviews", params={"image": "stack", "verdict": "approved"}).status_code == 400
    assert rob.ask("GET", "/readers/nobody").status_code == 404
    three = ada.ask("GET", "/readers/stack").json()
    assert len(three["structures"]["heart"]["pairs"]) == 3
    assert three["structures"]["heart"]["fleiss_kappa"] < 1


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 400),
        ({"method": "median"}, 400),
        ({"method": "reader"}, 400),
        ({"method": "reader", "reader": "eve"}, 400),
        ({"method": "staple", "reader": "ada"}, 400),
        ({"method": "drawn"}, 400),
        ({"method": "drawn", "segments": [{"name": "heart", "planes": [{"plane": 9, "runs": [0, 2]}]}]}, 400),
        ({"method": "staple", "nonsense": 1}, 400),
        ({"method": "staple", "seen": {"ada": "another", "ben": "one"}}, 409),
    ],
)
def test_what_is_no_consensus_is_refused(team: Team, given: dict[str, Any], status: int) -> None:
    people = team()
    people["ada"].save(segment())
    people["ben"].save(segment(start=610), as_new=True)
    answer = people["rob"].settle(**given)
    assert answer.status_code == status, answer.text
    assert people["rob"].ask("GET", "/readers/stack").json()["consensus"] is None


def test_who_corrects_a_label_that_they_were_shown_is_no_second_reader(team: Team) -> None:
    people = team()
    base = people["ada"].save(segment()).json()["version"]
    assert people["ben"].label().json()["by"] == "ada"
    people["ben"].save(segment(start=610), base=base)
    told = people["rob"].ask("GET", "/readers/stack").json()
    assert ([each["reader"] for each in told["readers"]], told["waiting"]) == (["ben"], False)
    assert people["ada"].ask("GET", "/rounds/").json()["new"] == 1


def mask_file(studies: Path, values: np.ndarray) -> bytes:
    """Return a label of the volume as a file."""
    label = SimpleITK.GetImageFromArray(values.astype(np.uint8))
    label.CopyInformation(SimpleITK.ReadImage(studies / "stack.nii.gz"))
    file = studies.parent / "mask.nii.gz"
    SimpleITK.WriteImage(label, file)
    return file.read_bytes()


def test_two_readers_who_draw_the_same_are_two(team: Team, studies: Path) -> None:
    people, content = team(), mask_file(studies, np.zeros(SHAPE))
    for name in ("ada", "ben"):
        params = json.dumps({"label_info": [{"name": "heart", "idx": 13}]})
        answer = people[name].ask(
            "PUT",
            "/datastore/label",
            params={"image": "stack"},
            data={"params": params},
            files={"label": ("empty.nii.gz", content)},
        )
        assert answer.status_code == 200, answer.text
    told = people["rob"].ask("GET", "/readers/stack").json()
    assert ([each["reader"] for each in told["readers"]], told["dice"]) == (["ada", "ben"], 1.0)
    # nobody can say that a label is a consensus, or whose it corrects
    params = json.dumps({"consensus": {"method": "staple"}, "replaces": ["ada", "ben"]})
    people["ben"].ask(
        "PUT",
        "/datastore/label",
        params={"image": "stack"},
        data={"params": params},
        files={"label": ("empty.nii.gz", content)},
    )
    assert people["rob"].ask("GET", "/readers/stack").json()["waiting"]


def test_a_removed_label_begins_anew(team: Team, make_client: Any) -> None:
    people = team()
    people["ada"].save(segment())
    people["ben"].save(segment(start=610), as_new=True)
    app = people["ada"]._client.app.state.label_app  # type: ignore[attr-defined]
    app.datastore().remove_label("stack", "final")
    app.rounds.removed("stack")
    assert people["ada"].label().status_code == 204
    people["ada"].save(segment(start=620))
    told = people["rob"].ask("GET", "/readers/stack").json()
    assert ([each["reader"] for each in told["readers"]], told["waiting"]) == (["ada"], False)
    assert people["rob"].ask("GET", "/readers").json() == []


# -- assignments -----------------------------------------------------------------------------------------------------


def test_assigned_images_are_offered_first_and_to_nobody_else(team: Team) -> None:
    people = team()
    ada, ben, rob = people["ada"], people["ben"], people["rob"]
    assert rob.ask("GET", "/assignments").json() == []
    made = rob.ask("PUT", "/assignments", json={"images": ["stack", "film"], "readers": ["ben"]})
    assert made.status_code == 200, made.text
    assert {(each["image"], each["reader"], each["by"], each["done"]) for each in made.json()} == {
        ("stack", "ben", "rob", False),
        ("film", "ben", "rob", False),
    }
    rest = {ada.next()["id"] for _ in range(4)}
    assert rest == {"chest", "broken"} or rest == {"chest"}
    offered = [ben.next() for _ in range(2)]
    assert {(each["id"], each["why"]) for each in offered} == {("stack", "assigned"), ("film", "assigned")}
    assert ada.ask("PUT", "/rounds/leases", params={"image": "stack"}).status_code == 409
    ben.save(segment())
    assert [each["image"] for each in rob.ask("GET", "/assignments").json() if each["done"]] == ["stack"]
    # one image to two: both read it, blind
    rob.ask("PUT", "/assignments", json={"images": ["stack"], "readers": ["ada"]})
    assert ada.next()["id"] == "stack"
    assert ada.label().status_code == 204
    assert [each["reader"] for each in rob.ask("GET", "/assignments", params={"reader": "ada"}).json()] == ["ada"]
    assert len(rob.ask("DELETE", "/assignments", params={"image": "stack"}).json()) == 2
    assert rob.ask("DELETE", "/assignments", params={"image": "stack"}).status_code == 404
    assert rob.ask("DELETE", "/assignments").status_code == 400
    # it is free again, and ada is shown what is there
    assert ada.label().json()["by"] == "ben"


def test_an_image_waits_for_all_whom_it_was_given_to(team: Team) -> None:
    people = team()
    people["rob"].ask("PUT", "/assignments", json={"images": ["stack"], "readers": ["ada", "ben", "rob"]})
    people["ada"].save(segment())
    people["ben"].save(segment(start=610))
    assert people["ben"].ask("GET", "/readers/stack").json()["pending"] == ["rob"]
    # rob is to read it, and not to adjudicate
    assert people["rob"].next()["why"] == "assigned"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"images": ["nobody"], "readers": ["ben"]}, 404),
        ({"images": ["../stack"], "readers": ["ben"]}, 400),
        ({"images": [], "readers": ["ben"]}, 400),
        ({"images": ["stack"], "readers": []}, 400),
        ({"images": "stack", "readers": ["ben"]}, 400),
        ({"images": ["stack"], "readers": ["eve"]}, 400),
        ({"images": ["stack"], "readers": ["uma"]}, 400),
        ({"images": ["stack"], "readers": ["a\nb"]}, 400),
        ({"images": ["stack"], "readers": ["anonymous"]}, 400),
        ({"images": ["stack"], "readers": ["ben"], "by": "me"}, 400),
        ({"images": ["stack", "nobody"], "readers": ["ben"]}, 404),
    ],
)
def test_what_cannot_be_assigned_is_refused_as_a_whole(team: Team, given: dict[str, Any], status: int) -> None:
    people = team()
    answer = people["rob"].ask("PUT", "/assignments", json=given)
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert people["rob"].ask("GET", "/assignments").json() == []
    allowed = {"images": ["stack"], "readers": ["ben"]}
    assert people["ada"].ask("PUT", "/assignments", json=allowed).status_code == 403


def test_assignments_and_readings_survive_a_restart(team: Team) -> None:
    people = team()
    people["rob"].ask("PUT", "/assignments", json={"images": ["stack"], "readers": ["ada", "ben"]})
    people["ada"].save(segment())
    before = people["rob"].ask("GET", "/assignments").json()
    later = team()
    assert later["rob"].ask("GET", "/assignments").json() == before
    offered = later["ben"].next()
    assert (offered["id"], offered["why"]) == ("stack", "assigned")


# -- without log-in --------------------------------------------------------------------------------------------------


def test_without_log_in_readers_are_told_apart_by_their_clients(make_client: Any, studies: Path) -> None:
    client = make_client(second_read_share="1")

    def save(who: str, image: str, start: int) -> Any:
        params = json.dumps({"client_id": who, "label_info": [{"name": "heart", "idx": 13}]})
        return client.put(
            f"/datastore/label?image={image}&tag=final",
            data={"params": params},
            files={"label": ("mask.nii.gz", mask_file(studies, 13 * drawn([segment(start=start)])))},
        )

    assert save("ada", "stack", 605).status_code == 200
    offered = client.post("/activelearning/random", json={"client_id": "ben"}).json()
    assert (offered["id"], offered["why"]) == ("stack", "second read")
    assert save("ben", "stack", 608).status_code == 200
    # who asks for it is offered what waits; of the readers neither is
    ask = {"client_id": "cyd"}
    assert client.post("/activelearning/random", json=ask).json()["why"] != "adjudication"
    assert client.post("/activelearning/adjudication", json=ask).json()["id"] == "stack"
    assert client.post("/activelearning/adjudication", json={"client_id": "ada"}).json() == {}
    refused = client.put("/readers/stack/consensus", params={"client_id": "ben"}, json={"method": "staple"})
    assert refused.status_code == 403
    assert client.put("/readers/stack/consensus", params=ask, json={"method": "staple"}).status_code == 200
    assert client.get("/info/").json()["rounds"]["waiting"] == 0


def test_the_share_of_second_reads_is_kept_and_fixed() -> None:
    images = [f"image {k}" for k in range(4000)]
    some = {image for image in images if is_read_twice(image, 0.2, 3)}
    # within four standard deviations of the binomial
    assert abs(len(some) / 4000 - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    assert some < {image for image in images if is_read_twice(image, 0.3, 3)}
    assert some != {image for image in images if is_read_twice(image, 0.2, 4)}


def test_what_is_saved_without_the_server_counts_too(team: Team, studies: Path) -> None:
    people = team()
    app = people["ada"]._client.app.state.label_app  # type: ignore[attr-defined]
    people["ada"].save(segment())
    # a second reader's label is imported, while the server runs
    store = FolderLabelStore(studies)
    image = read_image(studies / "stack.nii.gz")
    other = LabelMap((13 * drawn([segment(start=610)])).astype(np.uint8), image, {"heart": 13})
    store.save("stack", other, {"saved_by": "ben"})
    people["ada"].save(segment(start=606), as_new=True)
    assert [each["readers"] for each in people["rob"].ask("GET", "/readers").json()] == [["ben", "ada"]]
    # and the command makes the consensus
    assert people["ada"].ask("GET", "/datastore/", params={"output": "train"}).json() == []
    assert main(["labels", "consensus", "--studies", str(studies)]) == 0
    app.datastore().refresh()
    app.rounds.look()
    assert people["rob"].ask("GET", "/readers").json() == []
    (noted,) = app.rounds.ledger.labels()
    assert (noted.reader, noted.method, set(noted.readings)) == ("consensus", "staple", {"ada", "ben"})
    assert len(people["ada"].ask("GET", "/datastore/", params={"output": "train"}).json()) == 1
    assert people["ada"].ask("GET", "/viewer/api/state").json()["labelled"] == 1
