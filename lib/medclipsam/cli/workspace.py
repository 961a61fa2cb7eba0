"""`medclipsam workspace`: a workspace backed up, restored and described."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclipsam.cli.common import Parser, workspace_of
from medclipsam.server.backup import backup, info, restore


def add_workspace(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    workspace = commands.add_parser("workspace", help="back up, restore and describe a workspace")
    actions = workspace.add_subparsers(dest="action", required=True, parser_class=Parser)
    save = actions.add_parser("backup", help="write a workspace to an archive, while its server runs or not")
    save.add_argument("archive", type=Path, metavar="ARCHIVE", help="new file: .tar, .tar.gz or .tgz")
    save.set_defaults(run=_backup)
    put = actions.add_parser("restore", help="put the workspace of an archive in place")
    put.add_argument("archive", type=Path, metavar="ARCHIVE", help="file that `workspace backup` wrote")
    put.add_argument("--replace", action="store_true", help="move a workspace that is there aside")
    put.set_defaults(run=_restore)
    tell = actions.add_parser("info", help="what a workspace holds")
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(run=_info)
    for action in (save, put, tell):
        action.add_argument("--studies", help="folder of images, or URL of a DICOMweb server")
        action.add_argument("--workspace", type=Path, help="the workspace (default: that of the studies)")


def _backup(given: argparse.Namespace) -> int:
    folder = workspace_of(given)
    manifest = backup(folder, given.archive)
    sys.stdout.write(f"{given.archive}: {len(manifest['files'])} files of {folder}, written and read back\n")
    return 0


def _restore(given: argparse.Namespace) -> int:
    folder = workspace_of(given)
    manifest = restore(given.archive, folder, replace=given.replace)
    sys.stdout.write(f"{folder}: {len(manifest['files'])} files of {given.archive}, written and read back\n")
    if manifest["moved"]:
        sys.stdout.write(f"The workspace before is now {manifest['moved']}\n")
    return 0


def _info(given: argparse.Namespace) -> int:
    found = info(workspace_of(given))
    if given.json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
        return 0
    lines = [
        found.folder,
        f"  in use by    {found.in_use_by or 'nobody'}",
        f"  training     {found.training or 'none'}",
        f"  rounds file  {'none' if found.ledger_format is None else f'format {found.ledger_format}'}: "
        f"{found.images} images, {found.labels} labels (all versions), {found.rounds} rounds",
        f"  networks     {', '.join(f'{name} ({count})' for name, count in found.networks.items()) or 'none'}",
        f"  backup       {found.kept / 1e6:.1f} MB before compression",
        *(f"  {size / 1e6:10.1f} MB  {part}" for part, size in sorted(found.bytes.items())),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
