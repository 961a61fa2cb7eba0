"""`medclipsam viewer`: the OHIF viewer that the server shows at /viewer/."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.cli.common import Parser
from medclipsam.server.base.ohif import URL, VERSION, install_viewer, installed_viewer, viewer_home


def add_viewer(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    viewer = commands.add_parser("viewer", help="install the OHIF viewer that the server shows at /viewer/")
    actions = viewer.add_subparsers(dest="action", required=True, parser_class=Parser)
    install = actions.add_parser("install", help=f"bring OHIF {VERSION} to this machine")
    install.add_argument(
        "--file", type=Path, metavar="TGZ", help=f"the npm package, for machines without internet (default: {URL})"
    )
    install.add_argument("--quiet", action="store_true", help="show no progress bar")
    install.set_defaults(run=_install)
    actions.add_parser("info", help="print whether and where it is installed").set_defaults(run=_info)


def _install(given: argparse.Namespace) -> int:
    folder = install_viewer(given.file, progress=not given.quiet)
    print(f"OHIF {VERSION}: {folder}")
    return 0


def _info(given: argparse.Namespace) -> int:
    folder = installed_viewer()
    if folder is None:
        print(f"OHIF {VERSION} is not installed in {viewer_home()}; bring it with: medclipsam viewer install")
        return 1
    print(f"OHIF {VERSION}: {folder}")
    return 0
