"""What is used of MONAI Label beside its public interface is there; a failure names the installed version."""

import inspect
import re
from importlib.metadata import version
from typing import Any

import pytest
from monailabel.interfaces.app import MONAILabelApp
from monailabel.main import Main
from monailabel.utils.async_tasks import utils as async_tasks
from monailabel.utils.others.generic import init_log_config
from monailabel.utils.sessions import SessionInfo, Sessions

from medclipsam.server.monai_label import upstream

PACKAGE = f"monailabel {version('monailabel')}"


def test_the_app_sets_the_attributes_that_are_used() -> None:
    source = inspect.getsource(MONAILabelApp.__init__)
    used = "_datastore _infers _trainers _strategies _scoring_methods _batch_infer _auto_update_scoring _server_mode"
    assert [name for name in used.split() if f"self.{name}" not in source] == [], PACKAGE


def test_the_app_makes_its_parts_in_the_order_that_is_relied_on() -> None:
    order = re.findall(r"self\.(init_\w+)\(", inspect.getsource(MONAILabelApp.__init__))
    wanted = ["init_datastore", "init_infers", "init_trainers", "init_strategies", "init_scoring_methods"]
    assert [name for name in order if name in wanted] == wanted, PACKAGE


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (MONAILabelApp.__init__, "app_dir studies conf name description version labels"),
        (MONAILabelApp.server_mode, "mode"),
        (MONAILabelApp.scoring, "request datastore"),
        (Main.start_server_init_settings, "args"),
        (init_log_config, "log_config app_dir log_file root_level"),
        (async_tasks.stop_background_task, "method"),
        (async_tasks.processes, "method"),
        (async_tasks.tasks, "method"),
    ],
)
def test_functions_take_what_they_are_given(function: Any, names: str) -> None:
    known = inspect.signature(function).parameters
    assert [name for name in names.split() if name not in known] == [], f"{function.__qualname__} of {PACKAGE}"


def test_sub_processes_are_started_as_the_replacement_expects() -> None:
    source = inspect.getsource(async_tasks)
    assert "subprocess.Popen(" in source, PACKAGE
    used = set(re.findall(r"\bsubprocess\.(\w+)", source))
    assert used <= {"Popen", "STDOUT", "PIPE"}, f"{used} of {PACKAGE}"
    assert re.search(r'"-m",\s*method,\s*"-r",\s*json\.dumps\(', source), PACKAGE


def test_settings_and_sessions_have_what_is_used() -> None:
    assert hasattr(upstream.settings, "MONAI_LABEL_CORS_ORIGINS"), PACKAGE
    assert issubclass(upstream.Sessions, Sessions), PACKAGE
    assert issubclass(upstream.SessionInfo, SessionInfo), PACKAGE
    assert (upstream.STATIC / "ohif").is_dir(), PACKAGE
