"""MONAI Label's own start command runs the app too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from monailabel.client.client import MONAILabelClient

from medclipsam.targets import TargetSet


def test_stock_command_serves_the_app(stock_server: Any, tmp_path: Path) -> None:
    client = MONAILabelClient(stock_server.url, tmpdir=str(tmp_path))
    info = client.info()
    assert sorted(info["models"]) == ["lungs_x_ray", "refine", "text_prompt"]
    assert "radiograph" in client.datastore()["objects"]

    file, params = client.infer("lungs_x_ray", "radiograph", {})
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))
    label = TargetSet.load().get("lungs x-ray").label
    assert params["label_names"] == {"lungs x-ray": label}
    assert set(np.unique(mask)) == {0, label}

    answer = stock_server.infer("text_prompt", "radiograph", text="heart", colour="red")
    assert answer.status_code == 400
    assert "'colour'" in answer.json()["detail"]
