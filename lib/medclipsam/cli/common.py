"""What several commands share: the parser, the options of the pipeline, the models and the workspace."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import InputError
from medclipsam.base.options import CHOICES, ZeroShotOptions
from medclipsam.server.base.addresses import is_url
from medclipsam.server.base.workspace import default_workspace
from medclipsam.weights import default_pair

if TYPE_CHECKING:
    from medclipsam.targets import TargetSet

_OPTION_HELP = {
    "saliency": "saliency method",
    "preset": "where beta, variance and layer come from",
    "beta": "M2IB's trade-off",
    "variance": "M2IB's noise variance",
    "layer": "vision block of the bottleneck, from 0",
    "steps": "optimisation steps",
    "samples": "noise samples a step",
    "seed": "seed of noise and points",
    "contrast": "weight of the similarity to negative captions",
    "fit": "how a plane becomes the encoder's square input",
    "presence": "true or false: ask first whether the target is there",
    "presence_threshold": "below it the mask is empty (default: calibrated for the weights)",
    "postprocess": "saliency map to coarse mask",
    "threshold": "for postprocess threshold",
    "num_components": "how many largest components are kept",
    "min_size": "smallest component in pixels",
    "visual_prompt": "what SAM is given",
    "box_per_component": "true or false: a box for each component",
    "num_points": "points inside the coarse mask",
    "negative_points": "points outside it",
    "voting": "how SAM's candidates become one mask",
    "planes": 'planes of a volume, from 0: "7", "3-9"',
}


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line and exit code 2."""

    def error(self, message: str) -> Any:
        print(f"medclipsam: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of `ZeroShotOptions`."""
    group = parser.add_argument_group("options of the pipeline")
    for field in dataclasses.fields(ZeroShotOptions):
        default = "auto" if field.default is None else field.default
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            choices=CHOICES.get(field.name),
            metavar=None if field.name in CHOICES else "VALUE",
            help=f"{_OPTION_HELP[field.name]} (default: {default})",
        )


def pipeline_options(given: argparse.Namespace) -> ZeroShotOptions:
    """Return the options that were given, checked."""
    chosen = {field.name: getattr(given, field.name) for field in dataclasses.fields(ZeroShotOptions)}
    return ZeroShotOptions.from_mapping({key: value for key, value in chosen.items() if value is not None})


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
