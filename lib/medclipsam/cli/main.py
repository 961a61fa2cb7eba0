"""The command `medclipsam`.

Bad input is one line on standard error and exit code 2; an absent target is an empty mask, a sentence and exit code 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medclipsam import __version__
from medclipsam.base.errors import MedClipSamError
from medclipsam.base.extras import missing_extra
from medclipsam.cli.cohort import add_cohort
from medclipsam.cli.common import Parser
from medclipsam.cli.demo import add_demo
from medclipsam.cli.evaluate import add_evaluate
from medclipsam.cli.finetune import add_finetune
from medclipsam.cli.labels import add_labels
from medclipsam.cli.rounds import add_rounds
from medclipsam.cli.segment import add_segment
from medclipsam.cli.serve import add_doctor, add_serve
from medclipsam.cli.targets import add_targets
from medclipsam.cli.train import add_train
from medclipsam.cli.viewer import add_viewer
from medclipsam.cli.weights import add_weights
from medclipsam.cli.workspace import add_workspace
from medclipsam.dicomweb.addresses import hide_passwords
from medclipsam.server.base.settings import join_values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv[1:]` by default.

    Returns
    -------
    int
        Exit code: 0, 2 for bad input, 1 where the doctor finds something that fails.
    """
    if arguments is None:
        hide_passwords()
    parsed = make_parser().parse_args(join_values(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(parsed.run(parsed) or 0)
    except MedClipSamError as error:
        print(f"medclipsam: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(f"medclipsam: {missing}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medclipsam: stopped.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed `run` does the work."""
    parser = Parser(prog="medclipsam", description="Text-driven segmentation of medical images. Research use only.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for add in (
        add_segment,
        add_serve,
        add_doctor,
        add_evaluate,
        add_cohort,
        add_train,
        add_rounds,
        add_labels,
        add_workspace,
        add_demo,
        add_weights,
        add_viewer,
        add_finetune,
        add_targets,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
