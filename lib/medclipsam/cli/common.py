"""What several commands share: the parser, the options of the pipeline, the models and the workspace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError
from medclipsam.base.options import Options, ZeroShotOptions
from medclipsam.dicomweb.addresses import is_url
from medclipsam.server.base.workspace import default_workspace
from medclipsam.weights import default_pair

if TYPE_CHECKING:
    from medclipsam.targets import TargetSet


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line and exit code 2."""

    def error(self, message: str) -> Any:
        print(f"medclipsam: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def add_options(group: Any, options: type[Options]) -> None:
    """Add a flag for each option of a set to a parser or a group of it."""
    for each in options.options().values():
        group.add_argument(
            each.flag,
            choices=each.choices or None,
            metavar=each.metavar,
            help=each.help,
        )


def given_options(given: argparse.Namespace, *sets: type[Options]) -> dict[str, str]:
    """Return the options that a command line gives, of a parser with `add_options`."""
    names = [name for each in sets for name in each.options()]
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of `ZeroShotOptions`."""
    add_options(parser.add_argument_group("options of the pipeline"), ZeroShotOptions)


def pipeline_options(given: argparse.Namespace) -> ZeroShotOptions:
    """Return the options of the pipeline that a command line gives, checked."""
    return ZeroShotOptions.from_mapping(given_options(given, ZeroShotOptions))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which models run, and where."""
    parser.add_argument("--weights", default=default_pair(), help="pair in `weights list` (default: %(default)s)")
    parser.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def target_set(files: Iterable[Path]) -> TargetSet:
    """Return the known targets and those of the user's files."""
    from medclipsam.targets import TargetSet

    return TargetSet.load(*files)


def choose_device(asked: str | None) -> str:
    """Return the device to run on: the one asked for, else a GPU where there is one.

    Raises
    ------
    InputError
        If torch cannot use it.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"The device {asked!r} cannot be used here; allowed: cpu, or cuda where torch sees a GPU."
        ) from None
    return asked


def workspace_of(given: argparse.Namespace) -> Path:
    """Return the workspace that `--workspace` names, else that of `--studies`.

    Raises
    ------
    InputError
        If neither was given.
    """
    if given.workspace is not None:
        return Path(given.workspace).expanduser().absolute()
    if given.studies is None:
        raise InputError("Name the workspace with --workspace DIR, or its studies with --studies FOLDER or URL.")
    studies = str(given.studies)
    return default_workspace(studies if is_url(studies) else str(Path(studies).expanduser().resolve()))
