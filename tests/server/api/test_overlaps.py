"""Labels whose segments overlap: what clients send, save and get back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from fastapi.testclient import TestClient

from medclipsam.imaging import read_image
from medclipsam.imaging.frames import decode_runs

SHAPE = (3, 40, 60)
HEART, LEFT_LUNG = 13, 11


def _masks() -> dict[str, np.ndarray]:
    masks = {name: np.zeros(SHAPE, bool) for name in ("left lung", "heart", "my cyst")}
    masks["left lung"][:, 5:35, 5:30] = True
    masks["heart"][1:, 10:30, 20:45] = True
    masks["my cyst"][1, 12:16, 22:28] = True
    return masks


def _as_slicer(path: Path, studies: Path) -> Path:
    """Write each segment in a layer of its own, where it has the value 1, as 3D Slicer may."""
    masks = _masks()
    stack = SimpleITK.ReadImage(studies / "stack.nii.gz")
    image = read_image(studies / "stack.nii.gz")
    drawn = SimpleITK.GetImageFromArray(
        np.stack([image.to_native(mask.astype(np.uint8)) for mask in masks.values()], axis=-1), isVector=True
    )
    drawn.CopyInformation(stack)
    for number, name in enumerate(masks):
        for key, text in (("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            drawn.SetMetaData(f"Segment{number}_{key}", text)
    SimpleITK.WriteImage(drawn, path, useCompression=True)
    return path


def _segments(path: Path, studies: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Return value and mask (display orientation) of each segment of a file, by ITK and the file's own keys."""
    image, found = SimpleITK.ReadImage(path), {}
    layers = SimpleITK.GetArrayFromImage(image).reshape(*SHAPE, -1)
    shown = read_image(studies / "stack.nii.gz")
    for number in range(image.GetNumberOfComponentsPerPixel() * 255):
        if not image.HasMetaDataKey(f"Segment{number}_Name"):
            break
        value, layer = (int(image.GetMetaData(f"Segment{number}_{key}")) for key in ("LabelValue", "Layer"))
        mask = shown.from_native(layers[..., layer] == value)
        found[image.GetMetaData(f"Segment{number}_Name")] = value, mask
    return found


def _save(client: TestClient, file: Path, **params: Any) -> Any:
    with file.open("rb") as content:
        return client.put(
            "/datastore/label",
            params={"image": "stack", **params},
            files={"label": (file.name, content)},
            data={"params": json.dumps({"label_info": [{"name": "left lung", "idx": 1}]})},
        )


def _get(client: TestClient, path: Path, **params: Any) -> Path:
    answer = client.get("/datastore/label", params={"label": "stack", "tag": "final", **params})
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)
    return path


def test_a_segmentation_in_layers_comes_back_whole(client: TestClient, studies: Path, tmp_path: Path) -> None:
    sent = _as_slicer(tmp_path / "sent.seg.nrrd", studies)
    assert _save(client, sent).status_code == 200
    masks = _masks()
    kept = _segments(_get(client, tmp_path / "kept.seg.nrrd"), studies)
    assert kept.keys() == masks.keys()
    assert (kept["left lung"][0], kept["heart"][0]) == (LEFT_LUNG, HEART)
    assert all(np.array_equal(mask, masks[name]) for name, (_, mask) in kept.items())
    # one value for each voxel: the smaller one on top
    flat = SimpleITK.ReadImage(_get(client, tmp_path / "flat.nii.gz", result_extension=".nii.gz"))
    values = read_image(studies / "stack.nii.gz").from_native(SimpleITK.GetArrayFromImage(flat))
    assert np.array_equal(values == kept["my cyst"][0], masks["my cyst"])
    assert np.array_equal(values == HEART, masks["heart"] & ~masks["my cyst"])
    assert np.array_equal(values == LEFT_LUNG, masks["left lung"] & ~masks["heart"])
    # the viewer's segments
    for segment in client.get("/viewer/api/labels/stack").json()["segments"]:
        mask = np.zeros(SHAPE, bool)
        for each in segment["planes"]:
            mask[each["plane"]] = decode_runs(each["runs"], SHAPE[1:], "it")
        assert np.array_equal(mask, masks[segment["name"]])


def test_an_earlier_version_of_what_overlaps_is_brought_back_whole(
    client: TestClient, studies: Path, tmp_path: Path
) -> None:
    assert _save(client, _as_slicer(tmp_path / "sent.seg.nrrd", studies)).status_code == 200
    SimpleITK.WriteImage(SimpleITK.ReadImage(studies / "stack.nii.gz") > 255, tmp_path / "empty.nii.gz")
    assert _save(client, tmp_path / "empty.nii.gz").status_code == 200
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["stack.nii.gz"]
    (version,) = client.get("/datastore/label/versions", params={"label": "stack"}).json()
    earlier = _segments(_get(client, tmp_path / "earlier.seg.nrrd", version=version["version"]), studies)
    again = client.put("/datastore/label/versions", params={"label": "stack", "version": version["version"]})
    assert again.status_code == 200
    back = _segments(_get(client, tmp_path / "back.seg.nrrd"), studies)
    for name, mask in _masks().items():
        assert np.array_equal(earlier[name][1], mask)
        assert np.array_equal(back[name][1], mask)
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["stack.seg.nrrd"]


def test_a_copy_that_lost_what_overlaps_is_refused(
    client: TestClient, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is acknowledged was read back whole."""
    from medclipsam.imaging import label_map

    def forget_one(segments: Any, *args: Any, **more: Any) -> None:
        write(list(segments)[:-1], *args, **more)

    write = label_map.write_seg_nrrd
    monkeypatch.setattr(label_map, "write_seg_nrrd", forget_one)
    answer = _save(client, _as_slicer(tmp_path / "sent.seg.nrrd", studies))
    assert (answer.status_code, "read back" in answer.json()["detail"]) == (400, True)
    assert not list((studies / "labels" / "final").iterdir())


@pytest.mark.parametrize("saved", [False, True])
def test_masks_of_a_request_are_answered_and_kept_whole(
    client: TestClient, studies: Path, tmp_path: Path, saved: bool
) -> None:
    """The stand-in finds every target in the same voxels."""
    stack = read_image(studies / "stack.nii.gz")
    bright = np.stack([stack.plane(n)[..., 0] > 128 for n in range(3)])
    params = {"text": "heart; left lung", "result_extension": ".seg.nrrd", "save_label": saved, "client_id": "one"}
    answer = client.post(
        "/infer/text_prompt", params={"image": "stack", "output": "image"}, data={"params": json.dumps(params)}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].rstrip('"').endswith(".seg.nrrd")
    (tmp_path / "answer.seg.nrrd").write_bytes(answer.content)
    found = _segments(tmp_path / "answer.seg.nrrd", studies)
    assert found.keys() == {"heart", "left lung"}
    assert all(np.array_equal(mask, bright) for _, mask in found.values())
    if saved:
        kept = _segments(_get(client, tmp_path / "kept.seg.nrrd", tag="original"), studies)
        assert all(np.array_equal(kept[name][1], bright) for name in found)
    # clicks go on from the last mask: the heart loses what the lung keeps
    row, column = np.argwhere(bright[1])[0]
    voxel = next(ijk for ijk in np.ndindex(60, 40, 3) if tuple(stack.display_index([list(ijk)])[0]) == (1, row, column))
    params = {"label": "heart", "background": [list(map(int, voxel))], "result_extension": ".seg.nrrd"}
    answer = client.post(
        "/infer/refine",
        params={"image": "stack", "output": "image"},
        data={"params": json.dumps({**params, "client_id": "one"})},
    )
    assert answer.status_code == 200, answer.text
    (tmp_path / "refined.seg.nrrd").write_bytes(answer.content)
    refined = _segments(tmp_path / "refined.seg.nrrd", studies)
    assert not refined["heart"][1][1, row, column]
    assert np.array_equal(refined["left lung"][1], bright)
