"""`medclipsam serve` and `medclipsam doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medclipsam.server.base.settings import add_flags, settings_of
from medclipsam.weights import default_pair


def add_serve(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    serve = commands.add_parser("serve", help="start the MONAI Label server")
    add_flags(serve)
    serve.set_defaults(run=_serve)


def add_doctor(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    doctor = commands.add_parser("doctor", help="check whether the server can start")
    doctor.add_argument("--studies", help="folder of images, or a DICOMweb URL, to look at as well")
    doctor.add_argument("--workspace", type=Path, help="where the server would write")
    doctor.add_argument("--weights", default=default_pair(), help="pair of weights (default: %(default)s)")
    doctor.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def _serve(given: argparse.Namespace) -> int:
    from medclipsam.server.serve import serve

    settings = settings_of(given)
    conf = dict(settings.conf)
    serve(
        settings.studies,
        host=settings.host,
        port=settings.port,
        workspace=settings.workspace,
        weights=conf.pop("weights", None),
        warm_up=settings.warm_up,
        conf=conf,
        token_file=settings.token_file,
        certificate=settings.certificate,
        behind_proxy=settings.behind_proxy,
        insecure=settings.insecure,
        oidc=settings.oidc,
    )
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from medclipsam.server.doctor import examine, passed, report, report_json

    checks = examine(studies=given.studies, workspace=given.workspace, weights=given.weights, device=given.device)
    print(report_json(checks) if given.json else report(checks))
    return 0 if passed(checks) else 1
