"""`medclipsam evaluate`: masks measured against the truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.base.options import SALIENCY_METHODS
from medclipsam.cli.common import Parser, add_model_arguments, add_pipeline_options, choose_device, pipeline_options


def add_evaluate(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    evaluate = commands.add_parser("evaluate", help="measure masks against the truth")
    actions = evaluate.add_subparsers(dest="action", required=True, parser_class=Parser)
    run = actions.add_parser("run", help="measure a data folder; an interrupted run goes on where it was")
    run.add_argument(
        "data", type=Path, metavar="DATA", help="folder in the paper's layout, or studies with final labels"
    )
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="the run's folder")
    run.add_argument(
        "--protocol", choices=("A", "B"), default="B", help="A: prompts from a file; B: one a task (default)"
    )
    run.add_argument("--prompts", type=Path, metavar="FILE", help="protocol A: JSON with a text for each image")
    run.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    run.add_argument("--tasks", action="append", default=[], metavar="NAME", help="this task only; may be repeated")
    run.add_argument("--tasks-file", type=Path, metavar="FILE", help="instead of DATA/tasks.yaml")
    run.add_argument("--limit", type=int, metavar="N", help="draw N images of each folder by the seed (default: all)")
    run.add_argument(
        "--label-map",
        action="append",
        default=[],
        metavar="VALUE=NAME|FILE",
        help="names of values in final labels saved without names: 1=heart (may be repeated), or a YAML or JSON file",
    )
    run.add_argument("--sensitivity", action="store_true", help="measure what wrong, other and nonsense texts do too")
    run.add_argument(
        "--ladder",
        nargs="?",
        const=",".join(SALIENCY_METHODS),
        metavar="METHOD[,METHOD]",
        help="measure the pipeline stage by stage too, for these saliency methods (default: all)",
    )
    run.add_argument("--sam", action="append", default=[], metavar="NAME", help="further SAM weights on the ladder")
    run.add_argument(
        "--search", action="store_true", help="protocol A: search settings on validation images with masks"
    )
    run.add_argument("--search-images", type=int, default=3, metavar="N", help="how many of a task (default: 3)")
    run.add_argument(
        "--network", type=Path, metavar="DIR", help="measure the trained network in this folder, not the pipeline"
    )
    run.add_argument("--draws", type=int, default=2000, help="bootstrap samples (default: %(default)s)")
    run.add_argument("--restart", action="store_true", help="throw away what an earlier run left in --out")
    add_model_arguments(run)
    add_pipeline_options(run)
    run.set_defaults(run=_evaluate)
    pair = actions.add_parser("compare", help="hold two runs against each other, image by image")
    pair.add_argument("a", type=Path, metavar="A", help="folder of a run")
    pair.add_argument("b", type=Path, metavar="B", help="folder of another")
    pair.add_argument("--out", type=Path, metavar="DIR", help="write comparison.md and comparison.json there")
    pair.add_argument("--draws", type=int, default=2000, help="bootstrap samples (default: %(default)s)")
    pair.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    pair.set_defaults(run=_compare)
    convert = actions.add_parser("convert", help="bring a public set into the paper's layout")
    convert.add_argument("set", help="busi, udiat, brain-figshare, covid-qu-ex or chest-ct")
    convert.add_argument("source", type=Path, metavar="FOLDER", help="its unpacked download")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="data folder")
    convert.add_argument("--seed", type=int, default=0, help="of splits that are drawn (default: %(default)s)")
    convert.set_defaults(run=_convert)


def _evaluate(given: argparse.Namespace) -> int:
    options = pipeline_options(given)
    from medclipsam.evaluation.command import Request, evaluate
    from medclipsam.training.collect import read_label_map

    print(
        evaluate(
            Request(
                data=given.data,
                out=given.out,
                protocol=given.protocol,
                prompts=given.prompts,
                split=given.split,
                tasks=tuple(given.tasks),
                tasks_file=given.tasks_file,
                limit=given.limit,
                label_map=read_label_map(given.label_map),
                search=given.search,
                network=given.network,
                search_images=given.search_images,
                ladder=tuple(part.strip() for part in (given.ladder or "").split(",") if part.strip()),
                sams=tuple(given.sam),
                sensitivity=given.sensitivity,
                draws=given.draws,
                restart=given.restart,
                weights=given.weights,
                device=choose_device(given.device),
                targets_files=tuple(given.targets_file),
                options=options,
            ),
            show=True,
        )
    )
    return 0


def _compare(given: argparse.Namespace) -> int:
    from medclipsam.evaluation.compare import compare

    print(compare(given.a, given.b, out=given.out, draws=given.draws, seed=given.seed))
    return 0


def _convert(given: argparse.Namespace) -> int:
    from medclipsam.evaluation.convert import convert

    counts = convert(given.set, given.source, given.out, seed=given.seed, show=True)
    print(f"{given.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0
