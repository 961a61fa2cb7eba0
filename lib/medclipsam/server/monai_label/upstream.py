"""What is used of MONAI Label beside the classes that ours derive from; most of it is not its public interface.

MONAI Label reads its settings once, at import, so that this module is imported after they stand in the environment.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import monailabel.endpoints
from monailabel.config import settings
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance, apps
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, stop_background_task, tasks
from monailabel.utils.sessions import SessionInfo, Sessions

if TYPE_CHECKING:
    from medclipsam.server.monai_label.app import MedClipSamApp

__all__ = [
    "STATIC",
    "AsyncTask",
    "BatchInferImageType",
    "SessionInfo",
    "Sessions",
    "apply_settings",
    "loaded_app",
    "make_app",
    "processes",
    "settings",
    "stop_sub_processes",
    "tasks",
    "write_log_config",
]

# The viewer that MONAI Label brings.
STATIC = Path(monailabel.endpoints.__file__).parent / "static"


def apply_settings(app: Path, studies: str, host: str, port: int, conf: Mapping[str, str]) -> list[str]:
    """Set MONAI Label's settings as its command `start_server` does, for this process and its sub-processes.

    Returns
    -------
    list of str
        The origins that may use the server from a browser. They are taken out of the settings: MONAI Label fails to
        write them for its sub-processes, which fail to read them.
    """
    from monailabel.main import Main

    main = Main(loglevel=logging.WARNING)
    command = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    arguments = main.args_parser().parse_args(command)
    # its parser would take a value such as -600/1500 for a flag
    arguments.conf = [list(pair) for pair in conf.items()]
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    settings.MONAI_LABEL_CORS_ORIGINS = []
    main.start_server_init_settings(arguments)
    return origins


def write_log_config(app: Path) -> Path:
    """Write MONAI Label's configuration of the log beside the app, and return its path."""
    from monailabel.utils.others.generic import init_log_config

    return Path(init_log_config(None, str(app), "app.log", False))


def make_app() -> MedClipSamApp:
    """Make the app that the settings name."""
    return cast("MedClipSamApp", app_instance())


def loaded_app() -> MedClipSamApp | None:
    """Return the app if it has been made."""
    from medclipsam.server.monai_label.app import MedClipSamApp

    return next((app for app in apps.values() if isinstance(app, MedClipSamApp)), None)


def stop_sub_processes() -> None:
    """Stop all trainings and batches."""
    for method in ("train", "batch_infer"):
        while processes(method):
            stop_background_task(method)
