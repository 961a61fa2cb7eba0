"""What the documentation shows works: commands, Python, the notebook."""

import ast
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image

from medclipsam.cli.main import make_parser
from medclipsam.imaging import read_image, read_mask

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
NOTEBOOK = ROOT / "docs" / "first-mask.ipynb"
# What stands for other words: `...`, `[--option VALUE]`, `a | b`.
SKETCH = re.compile(r"\.\.\.|[\[\]|]")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language; "" for those that name none."""
    text = page.read_text(encoding="utf-8")
    return [block for name, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S) if name == language]


def commands() -> list[tuple[str, str]]:
    """Return each call of the command that a page shows in full, with the page's name."""
    found = []
    for page in PAGES:
        for block in blocks(page, ""):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                call = re.match(r"\s*(?:\.venv/bin/)?medclipsam (.*)", line)
                if call and not SKETCH.search(call[1].partition(" # ")[0]):
                    found.append((page.name, call[1].partition(" # ")[0].strip()))
    return found


PYTHON = [(page.name, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "command"), commands())
def test_each_command_that_a_page_shows_is_understood(page: str, command: str) -> None:
    make_parser().parse_args(shlex.split(command))


def test_pages_show_commands() -> None:
    assert len(commands()) > 40
    assert {"README.md", "first-mask.md", "correct-and-retrain.md"} <= {page for page, _ in commands()}


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_each_name_that_a_page_imports_is_there(page: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                getattr(module, name.name)


def test_python_of_the_retraining_tutorial_writes_images_and_labels_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "correct-and-retrain.md", "python")
    exec(compile(block, "correct-and-retrain.md", "exec"), {})
    images = sorted((tmp_path / "studies").glob("*.png"))
    assert len(images) == 40
    for path in images[:3]:
        labels = read_mask(tmp_path / "studies" / "labels" / "final" / path.name, read_image(path))
        assert set(np.unique(labels)) == {0, 1}


def test_notebook_is_stored_without_outputs_and_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)

    # the interpreter of the tests, whatever kernels the user has installed
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    shown = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert cells[-1].outputs[0]["data"]["text/plain"] in ("True", "np.True_")
    assert (tmp_path / "mask.nii.gz").is_file()


def test_links_of_the_pages_beside_the_readme_lead_somewhere() -> None:
    # those in docs/ are checked when the site is built
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), (page.name, target)


def test_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["url"] == project["urls"]["Paper"]


def test_pictures_of_pages_are_whole() -> None:
    for page in PAGES:
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            with Image.open(page.parent / name) as picture:
                picture.verify()
