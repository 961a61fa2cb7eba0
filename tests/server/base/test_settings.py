"""Every setting that the docs name reaches the server by flag, `--conf`, environment variable and YAML file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.settings import (
    APP_SETTINGS,
    FINETUNE_PREFIX,
    OTHER_VARIABLES,
    SETTINGS,
    TRAINING_PREFIX,
    ServeSettings,
    UnknownSettingError,
    add_flags,
    join_values,
    settings_of,
)
from medclipsam.training.options import TrainingOptions
from medclipsam.training.settings import RunOptions
from tools.docs_pages import on_page_markdown

ROOT = Path(__file__).parents[3]
PARSER = argparse.ArgumentParser()
add_flags(PARSER)
# Where the docs have tables of settings: page, heading, and what a table's name is called as a setting.
TABLES = [
    ("server.md", "## Settings", ""),
    ("pacs.md", "## Settings", ""),
    ("rounds.md", "## Settings", ""),
    ("options.md", "# Options", ""),
    ("training.md", "## What is trained", TRAINING_PREFIX),
    ("training.md", "## How it is trained", TRAINING_PREFIX),
    ("finetuning.md", "## Options", FINETUNE_PREFIX),
]
# Of requests, and of no default.
NO_SETTINGS = {"modality", "text"}
VALUES: dict[str, Any] = {
    "host": "127.0.0.2",
    "port": "8123",
    "workspace": "/w",
    "warm_up": "true",
    "token_file": "/t",
    "ssl_certfile": "/c.pem",
    "ssl_keyfile": "/k.pem",
    "behind_proxy": "10.0.0.1",
    "insecure": "true",
    "oidc_issuer": "https://id.example/other",
    "oidc_client_id": "me",
    "oidc_audience": "them",
    "oidc_scopes": "openid email",
    "oidc_username_claim": "email",
    "oidc_roles_claim": "roles",
    "oidc_session_minutes": "5",
    "targets": "heart,lungs x-ray",
    "targets_file": "/a.yaml,/b.yaml",
    "weights": "biomedclip+medsam",
    "device": "cuda:1",
    "release_models": "true",
    "queue_length": "3",
    "max_seconds": "60",
    "max_upload_mb": "10",
    "cache_days": "2",
    "label_access": "owner",
    "audit_file": "/audit.jsonl",
    "audit_text": "true",
    "networks": "/networks",
    "validation_share": "0.2",
    "validation_seed": "7",
    "rounds": "/rounds.sqlite",
    "retrain_after": "5",
    "retrain_options": '{"epochs": 12}',
    "lease_minutes": "2.5",
    "max_leases": "7",
    "second_read_share": "0.25",
    "prelabels": "1",
    "sampling_seed": "9",
    "pacs_modalities": "CT,MR",
    "pacs_filter": "StudyDate=20260101-;PatientID=T*",
    "pacs_timeout": "5",
    "pacs_max_seconds": "100",
    "pacs_retries": "0",
    "pacs_cache_mb": "100",
    "pacs_seg_type": "LABELMAP",
    "pacs_reports": "true",
    "pacs_foreign_labels": "true",
    "presence": "off",
    "box_per_component": "true",
    "planes": "3-9",
    "train_name": "network_other",
    "train_targets": "heart",
    "train_modality": "CT",
    "train_device": "cpu",
    "train_window": "40/400",
    "train_memory": "4 GB",
}
# A setting that means nothing alone.
WITH = {"ssl_certfile": ("ssl_keyfile", "/k.pem"), "ssl_keyfile": ("ssl_certfile", "/c.pem")}


def documented(page: str, heading: str) -> list[str]:
    """Return the names in the first cells of the tables below a heading, up to the next heading."""
    text = on_page_markdown((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert f"\n{heading}\n" in f"\n{text}", (page, heading)
    part = f"\n{text}".partition(f"\n{heading}\n")[2]
    part = re.split(r"^#{1,6} ", part, maxsplit=1, flags=re.M)[0]
    return re.findall(r"^\| `([a-z0-9_]+)`", part, re.M)


NAMED = {
    prefix + name: f"{page} {heading}"
    for page, heading, prefix in TABLES
    for name in documented(page, heading)
    if prefix or name not in NO_SETTINGS
}


def value_of(name: str, tmp_path: Path) -> str:
    """Return a value of a setting that is not its default."""
    if name in ("studies", "oidc_client_secret_file", "pacs_ca_file", "pacs_token_file"):
        file = tmp_path / name
        file.write_text("secret")
        return str(file)
    if name in VALUES:
        return str(VALUES[name])
    sets = {
        FINETUNE_PREFIX: FinetuneOptions.options(),
        TRAINING_PREFIX: {**RunOptions.options(), **TrainingOptions.options()},
        "": ZeroShotOptions.options(),
    }
    prefix = next(prefix for prefix in sets if name.startswith(prefix))
    option = sets[prefix][name.removeprefix(prefix)]
    if option.choices:
        return next(choice for choice in reversed(option.choices) if choice != option.default)
    if option.kind == "switch":
        return str(not option.default).lower()
    low, high = option.low, option.high
    other = low + 1 if low + 1 <= high else (low + high) / 2
    return f"{other if other != option.default else other + (1 if other + 1 <= high else 0.01):g}"


def typed(arguments: list[str], environment: Mapping[str, str] | None = None) -> tuple[ServeSettings, AppConf]:
    settings = settings_of(PARSER.parse_args(join_values(arguments)), environment or {})
    conf = AppConf.from_strings(settings.conf)
    return ServeSettings(**{**vars(settings), "conf": {}}), conf


def test_the_docs_name_every_setting_and_no_other() -> None:
    assert NAMED.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_setting_reaches_the_server_by_all_four_ways(name: str, tmp_path: Path) -> None:
    value = value_of(name, tmp_path)
    also = dict([WITH[name]] if name in WITH else [])
    if name.startswith("oidc_") and name != "oidc_issuer":
        also["oidc_issuer"] = "https://id.example"
    base = ["--studies", "/s"] if name != "studies" else []
    for key, text in also.items():
        base += ["--conf", key, text]
    setting = SETTINGS[name]
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({name: yaml.safe_load(value) if name != "device" else value}))
    by_flag = typed([*base, f"{setting.flag}={value}"])
    assert typed([*base, "--conf", name, value]) == by_flag
    assert typed(base, {setting.variable: value}) == by_flag
    assert typed([*base, "--config", str(file)]) == by_flag
    if name != "studies":
        assert by_flag != typed(["--studies", "/s"])


def test_flags_come_before_conf_before_the_environment_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("studies: /s\nport: 1\npacs_timeout: 1\nbeta: 1\nprelabels: 1\n")
    environment = {
        "MEDCLIPSAM_CONFIG": str(file),
        "MEDCLIPSAM_PORT": "2",
        "MEDCLIPSAM_PACS_TIMEOUT": "2",
        "MEDCLIPSAM_BETA": "2",
    }
    settings, conf = typed(["--port", "4", "--conf", "port", "3", "--conf", "pacs_timeout", "3"], environment)
    assert settings.port == 4
    assert conf.pacs.timeout == 3
    assert conf.defaults.beta == 2
    assert conf.rounds.prelabels == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--conf", "train_window", "-600/1500"],
        ["--train-window", "-600/1500"],
        ["--train-window=-600/1500"],
    ],
)
def test_values_may_begin_with_a_dash(arguments: list[str]) -> None:
    _, conf = typed(["--studies", "/s", *arguments, "--conf", "train_epochs", "12"])
    assert conf.training == {**AppConf.from_strings({"train_window": "-600/1500"}).training, "epochs": 12}


@pytest.mark.parametrize("value", ["-5", "-x", "--port", "-", "--", "-.5", "-h"])
def test_conf_takes_whatever_follows_its_key_as_the_value(value: str) -> None:
    parsed = PARSER.parse_args(join_values(["--conf", "device", value, "--port", "8123", "--conf", "beta", "1"]))
    assert parsed.conf == [["device", value], ["beta", "1"]]
    assert parsed.setting_port == "8123"


def test_values_of_the_command_line_may_begin_with_a_dash(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from medclipsam.cli.main import main

    # the value is read, and then refused for what it is
    assert main(["serve", "--studies", str(tmp_path), "--conf", "port", "-8000"]) == 2
    assert "'port'" in capsys.readouterr().err
    assert main(["serve", "--studies", str(tmp_path), "--train-window", "-600/x"]) == 2
    assert "'train_window'" in capsys.readouterr().err


def test_lists_and_mappings_of_yaml(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    content = {
        "studies": "/s",
        "targets": ["breast tumour", "heart"],
        "pacs_filter": ["StudyDate=20260101-", "PatientID=T*"],
        "retrain_options": {"epochs": 12, "targets": "heart"},
        "presence": False,
        "device": None,
    }
    file.write_text(yaml.safe_dump(content))
    _, conf = typed(["--config", str(file)])
    assert conf.targets == ("breast tumour", "heart")
    assert conf.pacs.filters == (("StudyDate", "20260101-"), ("PatientID", "T*"))
    assert conf.rounds.training == {"epochs": 12, "targets": "heart"}
    assert conf.defaults.presence is False
    assert conf.device is None


def test_switches_can_be_given_without_a_value_and_be_taken_back(tmp_path: Path) -> None:
    settings, conf = typed(["--studies", "/s", "--warm-up", "--behind-proxy", "--audit-text"])
    assert settings.warm_up
    assert settings.behind_proxy == "127.0.0.1"
    assert conf.audit_text
    settings, _ = typed(["--studies", "/s", "--insecure", "false"], {"MEDCLIPSAM_INSECURE": "true"})
    assert not settings.insecure


@pytest.mark.parametrize(
    ("arguments", "environment", "file", "suggestion"),
    [
        (["--conf", "pacs_timeoutt", "5"], {}, "", "pacs_timeout"),
        ([], {"MEDCLIPSAM_PACS_TIMEOUTS": "5"}, "", "MEDCLIPSAM_PACS_TIMEOUT"),
        ([], {}, "pacs-timeout: 5", "pacs_timeout"),
        ([], {}, "quue_length: 5", "queue_length"),
        ([], {}, "zzzz: 5", None),
    ],
)
def test_unknown_names_are_errors_with_the_nearest_name(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], file: str, suggestion: str | None
) -> None:
    (tmp_path / "settings.yaml").write_text(file)
    with pytest.raises(UnknownSettingError) as error:
        typed(["--studies", "/s", "--config", str(tmp_path / "settings.yaml"), *arguments], environment)
    assert error.value.suggestion == suggestion
    assert suggestion is None or suggestion in str(error.value)


@pytest.mark.parametrize(
    "content", ["- a list", "a: [", "just text", "port: {a: 1}", "port: [1, 2]", "beta: 2026-01-01"]
)
def test_files_that_hold_no_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(InputError):
        typed(["--studies", "/s", "--config", str(tmp_path / "settings.yaml")])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        typed(["--studies", "/s", "--config", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "70000"),
        ("port", "x"),
        ("insecure", "perhaps"),
        ("train_epochs", "0"),
        ("train_loss", "mse"),
        ("finetune_epochs", "0"),
        ("finetune_loss", "mse"),
        ("finetune_beta1", "11"),
        ("oidc_issuer", "http://id.example"),
        ("oidc_issuer", "id.example"),
        ("oidc_session_minutes", "0"),
        ("oidc_scopes", "profile"),
    ],
)
def test_bad_values_name_the_setting(key: str, value: str) -> None:
    also = ["--conf", "oidc_issuer", "https://id.example"] if key.startswith("oidc") else []
    with pytest.raises(OptionError) as error:
        typed(["--studies", "/s", *also, "--conf", key, value])
    assert error.value.key == key


@pytest.mark.parametrize("arguments", [[], ["--studies", " "], ["--studies", "/s", "--ssl-certfile", "/c"]])
def test_what_is_missing_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError):
        typed(arguments)


def test_an_openid_setting_without_an_issuer_is_refused() -> None:
    with pytest.raises(InputError):
        typed(["--studies", "/s", "--oidc-client-id", "me"])


def test_settings_of_the_process_are_none_of_the_apps() -> None:
    assert not {"studies", "host", "port", "workspace", "insecure"} & APP_SETTINGS.keys()
    with pytest.raises(UnknownSettingError):
        AppConf.from_strings({"port": "8000"})


def test_training_defaults_hold_what_was_given_alone() -> None:
    conf = AppConf.from_strings({"train_epochs": "12", "train_memory": "4 GB", "train_keep": "auto"})
    assert conf.training == {"epochs": 12, "memory": 4 * 10**9}


def test_finetuning_defaults_hold_what_was_given_alone() -> None:
    conf = AppConf.from_strings({"finetune_loss": "hn-nce", "finetune_chunk_size": "8", "finetune_temperature": "auto"})
    assert conf.finetuning == {"loss": "hn-nce", "chunk_size": 8}
    assert not {"finetune_tracker", "finetune_device"} & SETTINGS.keys()


def test_all_variables_of_the_package_are_known() -> None:
    known = {setting.variable for setting in SETTINGS.values()} | OTHER_VARIABLES
    deployed = [each for each in (ROOT / "deploy").rglob("*") if each.is_file()]
    files = [*(ROOT / "lib").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *deployed]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"\bMEDCLIPSAM_[A-Z][A-Z_]*[A-Z]\b", text)) <= known, file
    assert len({setting.variable for setting in SETTINGS.values()}) == len(SETTINGS)
    assert len({setting.flag for setting in SETTINGS.values()}) == len(SETTINGS)
