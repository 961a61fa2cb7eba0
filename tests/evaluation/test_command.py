"""The command as its user runs it: reports, the search of settings, comparisons, bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.cli.main import main
from medclipsam.evaluation.data import find_cases
from medclipsam.evaluation.search import search_settings
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.sam import MaskResult
from medclipsam.targets import TargetSet

from .conftest import disc, save

FAST = ["--saliency", "patch_text"]
TARGETS = TargetSet.load()


@pytest.fixture(autouse=True)
def hand_reckoned(pipeline: ZeroShot, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = pipeline.sam.decode

    def with_points(
        embedding: np.ndarray, boxes: Any = None, points: Any = None, *rest: Any, **more: Any
    ) -> MaskResult:
        """Points alone ask for what is bright anywhere."""
        height, width = embedding.shape[:2]
        return decode(embedding, [[0, 0, width - 1, height - 1]] if boxes is None else boxes, **more)

    monkeypatch.setattr(pipeline.sam, "decode", with_points)
    pipeline.weights["sam"] = {"name": "box", "sha256": "2" * 64}
    monkeypatch.setattr(ZeroShot, "load", classmethod(lambda cls, *args, **kwargs: pipeline))


def test_one_command_gives_tables_and_a_report(spots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["evaluate", "run", str(spots), "--sensitivity", "--ladder", "patch_text", "--draws", "200", *FAST]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Protocol B: one fixed prompt a task" in printed
    assert "| spot | 3 of 4 | 100.0 (100.0 to 100.0)" in printed
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for report in (markdown, page):
        for told in (
            "Protocol B",
            "77.76 / 81.11",
            "published, zero-shot (A)",
            "patch_text: + coarse mask",
            "nonsense",
        ):
            assert told in report
    # Nothing is asked of the network, and every picture is inside.
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert page.count('src="data:image/png;base64,') == len(re.findall(r"!\[", markdown)) == 5
    for picture in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        with Image.open(out / picture) as opened:
            assert opened.width > 50
    rows = (out / "per_image.csv").read_text().splitlines()
    assert len(rows) == 5
    assert rows[0].startswith("task,name,text,present,found")
    assert len((out / "rungs.csv").read_text().splitlines()) == 1 + 4 * 8
    assert len((out / "sensitivity.csv").read_text().splitlines()) == 1 + 4 * 6
    # The same seed gives the same report; the seconds lie apart.
    again = tmp_path / "again"
    assert main([*arguments, "--out", str(again)]) == 0
    for name in ("report.md", "report.html", "summary.json", "per_image.json", "per_image.csv", "rungs.csv"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    assert "total" in (out / "seconds.csv").read_text().splitlines()[0]


def test_protocol_a_takes_prompts_and_searches_on_validation_images(spots: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    texts = ["a is bright", "b is bright", "c is bright", "a bright spot"]
    names = ("a", "b", "c", "none")
    prompts.write_text(json.dumps({f"{name}.png": text for name, text in zip(names, texts, strict=True)}))
    out = tmp_path / "run"
    base = ["evaluate", "run", str(spots), "--out", str(out), "--protocol", "A", "--prompts", str(prompts), *FAST]
    assert main([*base, "--search", "--search-images", "2"]) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["protocol"].startswith("A:")
    search = run["search"]["spot"]
    assert set(search["images"]) == {"a", "b"}
    assert {(e["beta"], e["variance"], e["layer"]) for e in search["saliency"]} == {
        # the published grid; blocks 7 to 9 of 12 are 2 and 3 of this tower's 4
        (beta, variance, layer)
        for beta in (0.1, 1.0, 2.0)
        for variance in (0.1, 1.0, 2.0)
        for layer in (2, 3)
    }
    best = max(search["postprocessing"], key=lambda entry: entry["dice"])
    assert run["by_task"]["spot"]["predictor"]["options"]["postprocess"] == best["postprocess"]
    rows = json.loads((out / "per_image.json").read_text())
    assert [row["text"] for row in rows] == texts


def test_settings_are_never_searched_on_test_images(spots: Path, pipeline: ZeroShot) -> None:
    cases = find_cases(spots, TARGETS, split="test")
    with pytest.raises(InputError, match=r"split 'test'; allowed: val"):
        search_settings(cases, pipeline, ZeroShotOptions())
    mixed = [*find_cases(spots, TARGETS, split="val"), cases[0]]
    with pytest.raises(InputError, match="split 'test'"):
        search_settings(mixed, pipeline, ZeroShotOptions())


def test_two_runs_are_compared_by_name(spots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run draws no mask for anything: presence at 1."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert main(["evaluate", "run", str(spots), "--out", str(a), *FAST]) == 0
    assert main(["evaluate", "run", str(spots), "--out", str(b), "--presence-threshold", "1", *FAST]) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", str(a), str(b), "--out", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "| spot | 4 | 100.00 | 25.00 | -75.00 |" in printed
    figures = json.loads((tmp_path / "c" / "comparison.json").read_text())["figures"]["dice"]["spot"]
    assert figures["effect_size"] == -1.0
    assert main(["evaluate", "compare", str(a), str(spots)]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--protocol", "A"], "--prompts"),
        (["--search"], "protocol A"),
        (["--split", "holdout"], "holdout"),
        (["--tasks", "spott"], "spott"),
        (["--limit", "0"], "limit"),
        (["--draws", "5"], "draws"),
        (["--ladder", "gradcam"], "gradcam"),
        (["--sam", "medsam"], "--ladder"),
        (["--beta", "much"], "beta"),
        (["--tasks-file", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    spots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert main(["evaluate", "run", str(spots), "--out", str(tmp_path / "run"), *FAST, *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("medclipsam: ")
    assert named in line
    assert not (tmp_path / "run").exists()


def test_a_bad_mask_is_told_before_anything_is_measured(
    spots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(disc((64, 90), 20, 20) * 255, spots / "spot" / "test_masks" / "c.png")
    assert main(["evaluate", "run", str(spots), "--out", str(tmp_path / "run"), *FAST]) == 2
    assert "c.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_overlays_show_what_was_found_and_what_is_true(spots: Path, tmp_path: Path) -> None:
    """The truth of one image is moved, so that its overlay holds all three colours."""
    save(disc((64, 96), 40, 66) * 255, spots / "spot" / "test_masks" / "b.png")
    out = tmp_path / "run"
    assert main(["evaluate", "run", str(spots), "--out", str(out), *FAST]) == 0
    worst = np.asarray(Image.open(out / "figures" / "spot-worst.png").convert("RGB"), dtype=int)
    coloured = worst[(np.ptp(worst, axis=2) > 60)]
    assert len(np.unique(coloured // 64, axis=0)) >= 3
    assert re.search(r"worst: b, DSC \d", (out / "report.md").read_text())
