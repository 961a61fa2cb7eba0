"""`medclipsam targets`: what can be asked for by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.cli.common import target_set


def add_targets(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    targets = commands.add_parser("targets", help="list what can be asked for by name")
    targets.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    targets.set_defaults(run=_targets)


def _targets(given: argparse.Namespace) -> int:
    known = target_set(given.targets_file)
    for name in known.names():
        target = known.get(name)
        print(f"{target.label:>4}  {name:<24} {'/'.join(target.modality) or 'any':<10} {target.captions[0]}")
    return 0
