"""An annotator's way over HTTP: mend a text's mask by clicks, look at its evidence, save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from monailabel.client.client import MONAILabelClient

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


def test_a_click_is_answered_at_once(client: MONAILabelClient) -> None:
    """The limit is 0.3 s where the plane has been embedded; the quickest of some, for a machine that is busy."""
    client.infer("text_prompt", "radiograph", {"text": "lungs x-ray", **FAST})
    seconds = []
    for number in range(5):
        _, params = client.infer("refine", "radiograph", {"heart": [[20 + 9 * number, 30, 0]], "use_last_mask": False})
        assert params["planes"][0]["sam_score"] is not None
        seconds.append(params["latencies"]["total"])
    assert min(seconds) < 1.5
