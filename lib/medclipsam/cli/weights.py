"""`medclipsam weights`: model weights listed, fetched, checked, named and converted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.cli.common import Parser


def add_weights(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    weights = commands.add_parser("weights", help="list, fetch and verify model weights")
    actions = weights.add_subparsers(dest="action", required=True, parser_class=Parser)
    actions.add_parser("list", help="what is known and what is here").set_defaults(run=_weights_list)
    fetch = actions.add_parser("fetch", help="download weights by name")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="names in `weights list`")
    fetch.set_defaults(run=_weights_fetch)
    verify = actions.add_parser("verify", help="check the hashes of weights")
    verify.add_argument("names", nargs="*", metavar="NAME", help="all that are here by default")
    verify.set_defaults(run=_weights_verify)
    add = actions.add_parser("add", help="give weights of your own a name")
    add.add_argument("name", metavar="NAME", help="name to use with --weights")
    add.add_argument("source", metavar="DIR", help="open_clip folder, SAM checkpoint, or a model in the demo's format")
    add.set_defaults(run=_weights_add)
    convert = actions.add_parser("convert", help="make an open_clip folder of a fine-tuned BiomedCLIP's checkpoint")
    convert.add_argument("source", type=Path, metavar="FILE|DIR", help="pytorch_model.bin, or open_clip's epoch_N.pt")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="the new folder")
    convert.add_argument(
        "--like", default="biomedclip", help="weights whose configuration and tokenizer are taken over (%(default)s)"
    )
    convert.set_defaults(run=_weights_convert)


def _weights_list(given: argparse.Namespace) -> int:
    from medclipsam.weights import available, format_table, weights_home

    print(format_table(available()))
    print(f"\nFolder: {weights_home()} (MEDCLIPSAM_WEIGHTS names another)")
    return 0


def _weights_fetch(given: argparse.Namespace) -> int:
    from medclipsam.weights import fetch

    for name in given.names:
        for folder in fetch(name):
            print(f"{name}: {folder}")
    return 0


def _weights_verify(given: argparse.Namespace) -> int:
    from medclipsam.weights import available, verify

    for name in given.names or [row.name for row in available() if row.state in ("in package", "present")]:
        for file in verify(name):
            print(f"{name}: {file.path} {file.sha256} ({file.against})")
    return 0


def _weights_add(given: argparse.Namespace) -> int:
    from medclipsam.weights import add

    print(f"{given.name}: {add(given.name, given.source)}")
    return 0


def _weights_convert(given: argparse.Namespace) -> int:
    from medclipsam.encoders.transformers_layout import convert
    from medclipsam.weights import resolve

    like = resolve(given.like)
    if not like.path.is_dir():
        raise InputError(f"Weights {given.like!r} are not an open_clip folder whose configuration could be taken over.")
    print(f"{convert(given.source, like.path, given.out)}")
    return 0
