"""The task `refine` as 3D Slicer, OHIF and scripts ask it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException

from medclipsam.base.errors import InputError
from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.infer_request import StudyImage, Upload
from medclipsam.targets import TargetSet, label_table

TABLE = label_table(TargetSet.load())
HEART = TABLE["heart"]
# The picture's bright box: rows 10..19, columns 30..49.
INSIDE, OUTSIDE = [35, 15, 0], [5, 5, 0]


def refused(app: Any, status: int, **request: Any) -> str:
    with pytest.raises(HTTPException) as error:
        app.infer({"model": "refine", "image": "chest", **request})
    assert error.value.status_code == status
    return str(error.value.detail)


@pytest.fixture
def mended(app: Any, tmp_path: Path) -> Callable[..., tuple[np.ndarray, dict[str, Any]]]:
    """Mend a mask [row, column] of the picture that is sent along."""

    def run(mask: np.ndarray, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
        nib.save(
            nib.Nifti1Image(mask.T.astype(np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "tmp sent.nii.gz"
        )
        sent = Upload(tmp_path / "tmp sent.nii.gz")
        done = app.run_infer(app.request("refine", params, StudyImage("chest"), Caller(), sent))
        found = np.asarray(nib.load(done.file).dataobj).T
        done.file.unlink()
        return found, done.params

    return run


def test_viewers_are_told_a_model_for_points(app: Any) -> None:
    info = app.info()["models"]["refine"]
    assert info["type"] == "deepedit"
    assert info["labels"] == TABLE
    assert info["config"] == {
        "modality": ["auto", "US", "MR", "CT", "CR", "DX", "MG"],
        "use_last_mask": True,
        "propagate": False,
    }


def test_ohif_sends_points_under_the_name_of_their_label(infer: Any) -> None:
    # with the stale answer keys that its option form keeps
    mask, params = infer(model="refine", heart=[INSIDE], background=[], result_dtype="uint8", restore_label_idx=False)
    assert (mask[10:20, 30:50] == HEART).all()
    assert (mask > 0).sum() == 200
    assert params["label_names"] == {"heart": HEART}
    assert params["present_mask"] == "none"
    assert params["planes"] == [
        {"plane": 0, "label": HEART, "clicks": 1, "followed": {"sam": 1}, "sam_score": 0.9, "changed": 200}
    ]
    assert params["weights"]["sam"]["name"] == "bright"
    json.dumps(params)


def test_slicer_sends_every_label_and_the_present_one(infer: Any) -> None:
    points = {name: [] for name in TABLE} | {"heart": [INSIDE], "background": [OUTSIDE]}
    mask, params = infer(model="refine", label="heart", modality="auto", use_last_mask=True, **points)
    assert set(np.unique(mask)) == {0, HEART}
    # the segment that stands for outside is no label
    mask, params = infer(model="refine", label="background", **(points | {"background": [INSIDE], "heart": []}))
    assert mask[15, 35] == 0
    assert params["sentence"].startswith("The last mask of this image was mended; heart: ")


def test_scripts_name_the_label_of_foreground_and_box(infer: Any) -> None:
    mask, params = infer(model="refine", label="heart", foreground=json.dumps([INSIDE]), background=[OUTSIDE])
    assert (mask[15, 35], mask[5, 5]) == (HEART, 0)
    mask, params = infer(model="refine", label="left lung", box=[0, 0, 0, 39, 39, 0], use_last_mask="false")
    assert params["present_mask"] == "none"
    assert (mask == TABLE["left lung"]).sum() == 100


def test_marks_without_a_name_mean_the_only_label_there_is(infer: Any) -> None:
    mask, params = infer(model="refine", foreground=[INSIDE])
    assert params["label_names"] == {"finding 1": 201}
    infer("film", text="heart")
    mask, params = infer("film", "refine", foreground=[OUTSIDE])
    assert mask.reshape(40, 60)[5, 5] == HEART


def test_marks_without_a_name_are_refused_where_several_labels_are_there(app: Any, infer: Any) -> None:
    infer(model="refine", heart=[INSIDE], **{"left lung": [OUTSIDE]})
    assert "left lung, heart" in refused(app, 400, foreground=[[20, 30, 0]])


def test_the_last_mask_of_this_client_and_image_is_mended(infer: Any) -> None:
    infer(text="heart", client_id="one")
    infer("film", text="left lung", client_id="one")
    mask, params = infer(model="refine", heart=[OUTSIDE], client_id="one")
    assert params["present_mask"] == "last"
    assert (mask[10:20, 30:50] == HEART).all()
    assert mask[5, 5] == HEART
    # what was refined is the next one's present mask
    mask, _ = infer(model="refine", background=[INSIDE], client_id="one")
    assert mask[15, 35] == 0
    assert mask[5, 5] == HEART
    for others in ({"client_id": "two"}, {}, {"client_id": "one", "use_last_mask": False}):
        assert infer(model="refine", heart=[OUTSIDE], **others)[1]["present_mask"] == "none"


def test_free_text_keeps_its_words(infer: Any) -> None:
    infer(text="a bright box")
    _, params = infer(model="refine", **{"finding 1": [OUTSIDE]})
    assert params["label_names"] == {"a bright box": 201}
    _, params = infer(model="refine", label="a bright box", foreground=[OUTSIDE])
    assert params["label_names"] == {"a bright box": 201}


@pytest.mark.parametrize("key", ["label", "target"])
def test_a_mask_that_is_sent_goes_before_the_last_one(infer: Any, mended: Any, key: str) -> None:
    infer(text="heart")
    present = np.zeros((40, 60), np.uint8)
    present[30:36, 5:15] = HEART
    mask, params = mended(present, **{key: "heart"}, foreground=[OUTSIDE])
    assert params["present_mask"] == "sent"
    assert (mask[30:36, 5:15] == HEART).all()
    assert mask[5, 5] == HEART
    assert mask[15, 35] == 0


def test_a_drawn_plane_of_a_volume_is_carried_on_and_stays(infer: Any) -> None:
    before, _ = infer("stack", text="heart")
    plane = 1
    assert before[plane].any()
    after, params = infer("stack", "refine", label="heart", drawn=[plane])
    assert params["propagated"]["heart"][0]["plane"] == plane
    assert params["label_names"] == {"heart": HEART}
    assert params["planes"] == []
    np.testing.assert_array_equal(after[plane], before[plane])


def test_a_volume_is_mended_plane_by_plane(infer: Any) -> None:
    infer("stack", text="heart")
    before, _ = infer("stack", "refine", heart=[[40, 15, 0]])
    after, params = infer("stack", "refine", background=[[40, 15, 2]], heart=[[5, 5, 0]])
    assert np.array_equal(before[1], after[1])
    assert after[2, 15, 40] == 0
    assert after[0, 5, 5] == HEART
    assert [plane["plane"] for plane in params["planes"]] == [0, 2]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({}, ["Nothing was marked"]),
        ({"heart": [[60, 0, 0]]}, ["[60.0, 0.0, 0.0]", "outside", "[59, 39, 0]"]),
        ({"heart": "here"}, ["'heart'", "'here'"]),
        ({"heart": {"i": 3}}, ["'heart'", "list of voxel indices"]),
        ({"heart": [["a", "b", "c"]]}, ["[i, j, k]"]),
        ({"box": [1, 2, 3], "label": "heart"}, ["[1, 2, 3]", "opposite corners"]),
        ({"foreground": [INSIDE], "label": "liver"}, ["'label'", "'liver'", "heart"]),
        ({"foreground": [INSIDE], "label": 13}, ["'label'", "13"]),
        ({"foreground": [INSIDE], "label": "/etc/passwd"}, ["'label'", "'/etc/passwd'"]),
        ({"foreground": [INSIDE], "colour": "red"}, ["'colour'", "'red'", "foreground"]),
        ({"foreground": [INSIDE], "text": "heart"}, ["'text'"]),
        ({"foreground": [INSIDE], "use_last_mask": "perhaps"}, ["'use_last_mask'", "'perhaps'"]),
        ({"foreground": [INSIDE], "background": [INSIDE], "label": "heart"}, ["both inside and outside"]),
        ({"foreground": [INSIDE], "propagate": "perhaps"}, ["'propagate'", "'perhaps'"]),
        ({"drawn": "three", "label": "heart"}, ["'drawn'", "'three'", "3-9"]),
        ({"drawn": "0-7", "label": "heart"}, ["'drawn'", "'0-7'"]),
    ],
)
def test_requests_that_cannot_be_used_are_one_sentence(app: Any, params: dict[str, Any], names: list[str]) -> None:
    sentence = refused(app, 400, **params)
    assert "\n" not in sentence
    for name in names:
        assert name in sentence


def test_a_sent_mask_of_another_size_is_refused(mended: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="59 x 40") as error:
        mended(np.zeros((40, 59)), target="heart", foreground=[INSIDE])
    assert str(tmp_path) not in str(error.value)


def test_files_of_the_server_are_no_masks(app: Any, studies: Path) -> None:
    assert "'label'" in refused(app, 400, label=str(studies / "chest.png"), target="", foreground=[INSIDE])


def test_clicks_are_no_batch(app: Any) -> None:
    with pytest.raises(HTTPException) as error:
        app.batch_infer({"model": "refine", "images": "all"})
    assert error.value.status_code == 400
    assert "no batch" in error.value.detail
