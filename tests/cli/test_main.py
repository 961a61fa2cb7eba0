import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.metrics import dice
from medclipsam.cli.main import main, make_parser
from medclipsam.pipeline.zero_shot import ZeroShot

FAST = ["--saliency", "patch_text"]


@pytest.fixture(autouse=True)
def hand_reckoned(pipeline: ZeroShot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZeroShot, "load", classmethod(lambda cls, *args, **kwargs: pipeline))


def picture(path: Path, bright: bool = True) -> Path:
    array = np.zeros((50, 70), np.uint8)
    if bright:
        array[20:32, 40:56] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def left_in(folder: Path) -> list[str]:
    """Return the files below a folder but the record of the masks written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".masks.tsv")
    return sorted(str(path.relative_to(folder)) for path in files)


def test_one_image_gives_mask_overlay_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "image.png")
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--overlay", str(out / "overlay.png"), "--report", str(out / "report.json"), *FAST]
    assert main(["segment", str(image), "--text", "bright spot", "--out", str(out / "mask.nii.gz"), *arguments]) == 0
    assert left_in(out) == ["mask.nii.gz", "overlay.png", "report.json"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "mask.nii.gz")))
    np.testing.assert_array_equal(mask > 0, np.asarray(Image.open(image)) > 0)
    report = json.loads((out / "report.json").read_text())
    assert report["label_names"] == {"bright spot": 201}
    assert set(np.unique(mask)) == {0, 201}
    assert "bright spot: found" in capsys.readouterr().out
    with Image.open(out / "overlay.png") as overlay:
        assert overlay.width >= 70


def test_an_absent_target_is_an_empty_mask_a_sentence_and_exit_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "image.png", bright=False)
    assert main(["segment", str(image), "--text", "bright spot", "--out", str(tmp_path / "mask.nrrd"), *FAST]) == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nrrd"))).any()
    assert "not found" in capsys.readouterr().out


def test_a_folder_becomes_a_folder_of_masks(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        picture(tmp_path / "images" / name)
    out = tmp_path / "masks"
    assert main(["segment", str(tmp_path / "images"), "--text", "bright", "--out", str(out), *FAST]) == 0
    assert left_in(out) == ["a.nii.gz", "sub/b.nii.gz", "sub/c.nii.gz"]


def test_each_volume_of_a_multi_frame_file_gets_a_mask(tmp_path: Path, write_phases: Callable[..., Path]) -> None:
    pixels = np.zeros((2, 2, 50, 70), np.uint16)
    pixels[0, :, 20:32, 40:56] = pixels[1, :, 10:22, 5:21] = 1000
    file = write_phases(pixels, tmp_path / "mr.dcm")
    out = tmp_path / "masks"
    run = ["segment", str(file), "--text", "bright", "--out", str(out), *FAST]
    assert main(run) == 0
    assert left_in(out) == ["mr-time1.nii.gz", "mr-time2.nii.gz"]
    for number, phase in enumerate(pixels, start=1):
        mask = sitk.ReadImage(str(out / f"mr-time{number}.nii.gz"))
        # corners are rounded on the way from plane to plane
        assert dice(sitk.GetArrayFromImage(mask) > 0, phase > 0) > 0.97
        assert mask.GetSpacing() == pytest.approx((0.7, 0.8, 2.5))


def test_a_bad_image_among_good_ones_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = picture(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    out = tmp_path / "masks"
    assert main(["segment", str(bad), str(good), "--text", "bright", "--out", str(out), *FAST]) == 2
    assert left_in(out) == ["good.nii.gz"]
    errors = capsys.readouterr().err
    assert "bad.png" in errors
    assert "1 of 2" in errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.png", "--text", "bright", "--out", "mask.nii.gz"], "missing.png"),
        (["image.png", "--text", " ", "--out", "mask.nii.gz"], "text"),
        (["image.png", "--text", "bright", "--out", "mask.jpg"], "mask.jpg"),
        (["image.png", "--text", "bright", "--out", "no/such/mask.nii.gz"], "no/such"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--overlay", "picture.gif"], "picture.gif"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--beta", "much"], "beta"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--saliency", "gradcam"], "gradcam"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--planes", "4"], "planes"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--targets-file", "none.yaml"], "none.yaml"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--device", "abacus"], "abacus"),
        (["text.png", "--text", "bright", "--out", "mask.nii.gz"], "text.png"),
        (["empty", "--text", "bright", "--out", "mask.nii.gz"], "empty"),
        (["image.png", "image.png", "--text", "bright", "--out", "masks"], "image"),
        (["image.png", "--out", "mask.nii.gz"], "--text"),
        (["image.png", "--text", "no heart", "--out", "mask.nii.gz"], "no heart"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--modality", "xray"], "xray"),
        (["image.png", "--text", "bright", "--out", "mask.nii.gz", "--measure", "table.xlsx"], "table.xlsx"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_leaves_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "empty").mkdir()
    before = left_in(tmp_path)
    try:
        code = main(["segment", *arguments, *([] if "--saliency" in arguments else FAST)])
    except SystemExit as exit_:  # argparse's own way out
        code = exit_.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("medclipsam: ")
    assert named in line
    assert left_in(tmp_path) == before


def test_when_one_output_cannot_be_made_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "image.png")

    def no_space(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device", "overlay.png")

    monkeypatch.setattr("medclipsam.imaging.write_overlay", no_space)
    out = ["--out", str(tmp_path / "mask.nii.gz"), "--overlay", str(tmp_path / "overlay.png")]
    assert main(["segment", str(image), "--text", "bright", *out, *FAST]) == 2
    assert left_in(tmp_path) == ["image.png"]
    assert "No space left" in capsys.readouterr().err


def test_weights_can_be_listed_and_missing_ones_are_told_how_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    assert main(["weights", "list"]) == 0
    listed = capsys.readouterr().out
    for name in ("biomedclip", "sam_vit_h", "sam_vit_l", "sam_vit_b", "medsam", "demo", str(tmp_path)):
        assert name in listed
    assert main(["weights", "verify", "sam_vit_b"]) == 2
    told = capsys.readouterr().err
    assert "medclipsam weights fetch sam_vit_b" in told
    assert "sam_vit_b_01ec64.pth" in told
    assert main(["weights", "verify", "demo_clip", "demo_sam"]) == 0


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    assert "breast tumour" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["segment", "none.png", "--text", "x", "--out", "m.nrrd"], "none.png"),
        (["finetune", "run", "none.csv", "--out", "run"], "none.csv"),
        (["finetune", "run", __file__, "--out", "run", "--weights", "demo_sam"], "demo_sam"),
        (["finetune", "evaluate", __file__, "--weights", "nobodys"], "nobodys"),
    ],
)
def test_the_quick_checks_do_not_wait_for_torch(arguments: list[str], named: str) -> None:
    code = f"import sys; from medclipsam.cli.main import main; main({arguments!r})"
    probe = f"{code}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert named in done.stderr


def test_a_second_run_keeps_the_masks_that_are_whole_and_of_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / "images" / f"{name}.png")
    out = tmp_path / "out"
    run = ["segment", str(tmp_path / "images"), "--out", str(out), *FAST]

    def again(*more: str, text: str = "bright spot") -> set[str]:
        """Return the names of the masks that a run writes."""
        before = {path: path.stat().st_ino for path in out.glob("*.nii.gz")}
        assert main([*run, "--text", text, *more]) == 0
        return {path.name[0] for path in out.glob("*.nii.gz") if path.stat().st_ino != before.get(path)}

    assert again() == set("abcd")
    assert again("--skip-existing") == set()
    (out / "a.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes(b"torn")
    picture(tmp_path / "images" / "c.png", bright=False)
    assert again("--skip-existing") == set("abc")
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(out / "c.nii.gz"))).any()
    assert again("--skip-existing", text="dark corner") == set("abcd")
    assert again("--skip-existing", "--seed", "1", text="dark corner") == set("abcd")
    assert again("--skip-existing", "--seed", "1", text="dark corner") == set()
    assert again("--skip-existing") == set("abcd")
    # an overlay that is not there yet is made
    assert again("--skip-existing", "--overlay", str(tmp_path / "overlays")) == set("abcd")
    assert again("--seed", "0") == set("abcd")


def test_every_option_of_every_command_is_described() -> None:
    def walk(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    yield from walk(sub)
            else:
                yield parser.prog, action

    described = list(walk(make_parser()))
    assert len(described) > 200
    for command, action in described:
        if action.help == argparse.SUPPRESS:  # a setting of the server: docs/server.md has them all
            continue
        text = action.help or ""
        assert re.match(r"[A-Za-z\"]", text), f"{command}: {action.dest}"
        assert len(text.split()) > 1, f"{command}: {action.dest}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["segment", "--help"], ["serve", "--help"]])
def test_help_does_not_wait_for_heavy_libraries(arguments: list[str]) -> None:
    heavy = ("torch", "torchvision", "monai", "monailabel", "open_clip", "transformers", "segment_anything", "scipy")
    code = f"""
import sys
from medclipsam.cli.main import main
try:
    main({arguments!r})
except SystemExit as stop:
    code = stop.code
print(code, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout, "help or version"
    assert done.stderr.splitlines()[-1] == "0 []"


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_measurements_of_an_image_and_of_a_folder_that_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    run = ["--text", "bright spot; bright line", *FAST, "--measure", str(tmp_path / "table.csv")]
    single = picture(tmp_path / "one.PNG")
    assert main(["segment", str(single), "--out", str(tmp_path / "mask.seg.nrrd"), *run]) == 0
    # the two texts mean the same pixels, and each of them has a layer
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.seg.nrrd")))
    assert mask.shape[-1] == 2
    lines = _table(tmp_path / "table.csv")
    assert [(line["image"], line["target"]) for line in lines] == [("one", "bright spot"), ("one", "bright line")]
    assert [int(line["n_voxels"]) for line in lines] == [int((mask == int(line["label"])).sum()) for line in lines]
    assert main(["segment", str(single), "--out", str(tmp_path / "mask.nii.gz"), *run]) == 0
    told = capsys.readouterr().err
    assert f"overlap in {lines[0]['n_voxels']} voxels" in told
    assert ".seg.nrrd" in told
    flat = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    assert (flat != 0).sum() == int(lines[0]["n_voxels"])
    for name in ("a.png", "sub/b.png"):
        picture(images / name)
    folder = ["segment", str(images), "--out", str(tmp_path / "masks"), "--suffix", ".seg.nrrd", *run]
    assert main(folder) == 0
    assert (tmp_path / "masks" / "sub" / "b.seg.nrrd").is_file()
    assert [line["image"] for line in _table(tmp_path / "table.csv")] == ["a", "a", "sub/b", "sub/b"]
    picture(images / "c.png")
    assert main([*folder, "--skip-existing"]) == 0
    assert {line["image"] for line in _table(tmp_path / "table.csv")} == {"a", "sub/b", "c"}
    # an image without lines is done again
    (tmp_path / "table.csv").unlink()
    assert main([*folder, "--skip-existing"]) == 0
    assert {line["image"] for line in _table(tmp_path / "table.csv")} == {"a", "sub/b", "c"}
