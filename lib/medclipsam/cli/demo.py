"""`medclipsam demo`: phantoms to try things on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.cli.common import Parser


def add_demo(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    demo = commands.add_parser("demo", help="make phantoms to try things on")
    made = demo.add_subparsers(dest="action", required=True, parser_class=Parser)
    data = made.add_parser("data", help="write phantoms with masks in the layout that `evaluate` reads")
    data.add_argument("--out", required=True, type=Path, metavar="DIR", help="data folder")
    data.add_argument(
        "--images", type=int, default=10, help="of each modality, with its finding (default: %(default)s)"
    )
    data.add_argument("--absent", type=int, help="further ones without the finding (default: half as many)")
    data.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    data.add_argument("--seed", type=int, help="seed of the first phantom (default: one for each split)")
    data.add_argument(
        "--renderer",
        default="phantoms",
        help="phantoms, or polygons unlike those the demo learned from (default: %(default)s)",
    )
    data.set_defaults(run=_demo_data)


def _demo_data(given: argparse.Namespace) -> int:
    from medclipsam.demo.data import write_data

    file = write_data(
        given.out,
        given.images,
        absent=given.absent,
        seed=given.seed,
        split=given.split,
        renderer=given.renderer,
        show=True,
    )
    print(f"{file}: measure with medclipsam evaluate run {given.out} --split {given.split} --out results")
    return 0
