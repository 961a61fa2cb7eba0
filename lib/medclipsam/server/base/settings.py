"""Every setting of `medclipsam serve`, and the four ways to give it: flag, `--conf`, environment variable, YAML file.

A flag takes precedence over `--conf`, that over the environment, that over the file, and that over the default.
All four lead to the same texts, which are typed once: here for what concerns the process, by `AppConf` for all else.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.finetune.options import SERVED_OPTIONS
from medclipsam.server.base.oidc_options import OidcOptions
from medclipsam.training.options import TrainingOptions
from medclipsam.training.settings import RunOptions

Kind = Literal["text", "switch", "list", "object"]

_PREFIX = "MEDCLIPSAM_"
CONFIG_VARIABLE = _PREFIX + "CONFIG"
# Variables of this package that are no settings.
OTHER_VARIABLES = frozenset(
    {
        CONFIG_VARIABLE,
        "MEDCLIPSAM_ENGINE",
        "MEDCLIPSAM_WEIGHTS",
        "MEDCLIPSAM_TOKEN",
        "MEDCLIPSAM_PACS_TOKEN",
        "MEDCLIPSAM_OIDC_CLIENT_SECRET",
    }
)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_PROXY = "127.0.0.1"
TRAINING_PREFIX = "train_"
FINETUNE_PREFIX = "finetune_"
# Goes before a value that begins with a dash, which argparse would take for a flag; no argument can hold it.
_VALUE = "\0"


@dataclass(frozen=True)
class Setting:
    """One setting.

    Parameters
    ----------
    name : str
        As `--conf` and a YAML file name it.
    group : str
        Under which `--help` lists it.
    help : str
        One line.
    kind : {"text", "switch", "list", "object"}
        "list" may be a list in a YAML file, and its flag be given several times; "object" may be a mapping there.
    absent : str
        Value of a flag without one; only where that is allowed.
    """

    name: str
    group: str
    help: str
    kind: Kind = "text"
    absent: str = ""

    @property
    def flag(self) -> str:
        """The flag of `serve`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        # MEDCLIPSAM_WEIGHTS names the folder of all weights, for all commands
        return _PREFIX + ("WEIGHTS_NAME" if self.name == "weights" else self.name.upper())


_PROCESS, _MODELS, _ACCESS = "server", "models and targets", "access"
_LIMITS, _AUDIT, _NETWORKS = "limits", "audit", "trained networks"
_ROUNDS, _PACS, _PIPELINE = "rounds", "DICOMweb server", "pipeline"
_OIDC, _TRAINING = "OpenID Connect", "--train-OPTION for each option of `medclipsam train run`"
_FINETUNE = "--finetune-OPTION for each option of `medclipsam finetune run`"

_PROCESS_SETTINGS = (
    Setting("studies", _PROCESS, "folder of images, or URL of a DICOMweb server"),
    Setting("host", _PROCESS, "address to listen on (default: 127.0.0.1)"),
    Setting("port", _PROCESS, "port to listen on, 0 for a free one (default: 8000)"),
    Setting("workspace", _PROCESS, "folder that the server writes to (default: one for each studies)"),
    Setting("warm_up", _PROCESS, "load the models before the server answers", "switch"),
    Setting("token_file", _ACCESS, "file with the users' tokens, one a line: USER ROLE TOKEN"),
    Setting("ssl_certfile", _ACCESS, "certificate chain for TLS (PEM)"),
    Setting("ssl_keyfile", _ACCESS, "private key of the certificate (PEM)"),
    Setting("behind_proxy", _ACCESS, f"address of a proxy that ends TLS ({_PROXY} if none is given)", absent=_PROXY),
    Setting("insecure", _ACCESS, "allow requests from other machines without authentication or TLS", "switch"),
    Setting("oidc_issuer", _OIDC, "issuer (URL) of the users' tokens"),
    Setting("oidc_client_id", _OIDC, "this server's client id (default: monailabel-app)"),
    Setting("oidc_client_secret_file", _OIDC, "file with the client's secret (default: a public client)"),
    Setting("oidc_audience", _OIDC, "audience that tokens must name (default: the client id)"),
    Setting("oidc_scopes", _OIDC, "scopes that browsers ask for (default: openid profile)"),
    Setting("oidc_username_claim", _OIDC, "claim with the user's name (default: preferred_username)"),
    Setting("oidc_roles_claim", _OIDC, "claim with the roles, # between levels (default: realm_access#roles)"),
    Setting("oidc_session_minutes", _OIDC, "longest time that a browser stays logged in (default: 480)"),
)
_APP_SETTINGS = (
    Setting("targets", _MODELS, "targets that are served as models of their own", "list"),
    Setting("targets_file", _MODELS, "further targets (YAML)", "list"),
    Setting("weights", _MODELS, "pair of weights, see `medclipsam weights list` (default: default)"),
    Setting("device", _MODELS, "cpu, cuda, cuda:1 ... (default: cuda where there is one)"),
    Setting("release_models", _MODELS, "drop the models for a training or batch that needs their memory", "switch"),
    Setting("queue_length", _LIMITS, "requests that may wait for the models (default: 8)"),
    Setting("max_seconds", _LIMITS, "longest time that a request may take (default: 1800)"),
    Setting("max_upload_mb", _LIMITS, "largest request, in MiB (default: 2048)"),
    Setting("cache_days", _LIMITS, "days that fetched DICOM series are kept unused (default: 7)"),
    Setting("label_access", _ACCESS, "who may read labels in a studies folder: folder or owner (default: folder)"),
    Setting("audit_file", _AUDIT, "file that notes each mask and label (default: in the workspace)"),
    Setting("audit_text", _AUDIT, "note the texts of requests in the audit file", "switch"),
    Setting("networks", _NETWORKS, "folder of the trained networks (default: in the workspace)"),
    Setting("validation_share", _NETWORKS, "share of patients kept for validation, chosen once (default: 0.15)"),
    Setting("validation_seed", _NETWORKS, "seed of the choice of these patients (default: 0)"),
    Setting("rounds", _ROUNDS, "file of the rounds (default: in the workspace)"),
    Setting("retrain_after", _ROUNDS, "new final labels after which a training starts, 0 for never (default: 20)"),
    Setting("retrain_options", _ROUNDS, "options of such a training, a JSON object", "object"),
    Setting("lease_minutes", _ROUNDS, "time that an image is kept for whom it was offered to (default: 30)"),
    Setting("max_leases", _ROUNDS, "images that are kept for one person at a time (default: 50)"),
    Setting("prelabels", _ROUNDS, "images for which masks are made ahead (default: 4)"),
    Setting("sampling_seed", _ROUNDS, "seed of all that is drawn (default: 0)"),
    Setting("pacs_modalities", _PACS, "modalities of the series that are listed", "list"),
    Setting("pacs_filter", _PACS, "further conditions of the search: StudyDate=20260101-; PatientID=TRIAL*", "list"),
    Setting("pacs_timeout", _PACS, "seconds within which the server must go on with its answer (default: 20)"),
    Setting("pacs_max_seconds", _PACS, "seconds within which an answer must be complete (default: 900)"),
    Setting("pacs_retries", _PACS, "further attempts at a failed search or retrieval (default: 2)"),
    Setting("pacs_cache_mb", _PACS, "MiB that fetched series may take (default: 20480)"),
    Setting("pacs_foreign_labels", _PACS, "use SEGs of other programs where there is none of ours", "switch"),
    Setting("pacs_ca_file", _PACS, "certificates (PEM) that may vouch for the server"),
    Setting("pacs_token_file", _PACS, "file with a bearer token, read again for each request"),
)
_PIPELINE_SETTINGS = tuple(
    Setting(name, _PIPELINE, f"default of the option {name}") for name in ZeroShotOptions.options()
)
_TRAINING_SETTINGS = tuple(
    Setting(TRAINING_PREFIX + name, _TRAINING, f"default of the training's option {name}")
    for name in (*RunOptions.options(), *TrainingOptions.options())
)
_FINETUNE_SETTINGS = tuple(
    Setting(FINETUNE_PREFIX + name, _FINETUNE, f"default of the fine-tuning's option {name}") for name in SERVED_OPTIONS
)

# Those that the app reads, which MONAI Label's own start command can give it as well.
APP_SETTINGS: dict[str, Setting] = {
    each.name: each for each in (*_APP_SETTINGS, *_PIPELINE_SETTINGS, *_TRAINING_SETTINGS, *_FINETUNE_SETTINGS)
}
SETTINGS: dict[str, Setting] = {each.name: each for each in _PROCESS_SETTINGS} | APP_SETTINGS


class UnknownSettingError(OptionError):
    """A setting has a name that there is not.

    Attributes
    ----------
    suggestion : str or None
        The most similar name.
    """

    def __init__(self, key: str, value: object, names: Iterable[str], where: str = "") -> None:
        similar = difflib.get_close_matches(key, list(names), 1)
        self.suggestion = similar[0] if similar else None
        hint = f"Did you mean {self.suggestion!r}?" if similar else "`medclipsam serve --help` lists all settings."
        InputError.__init__(self, f"Setting {key!r}{f' {where}' if where else ''} is not known. {hint}")
        self.key, self.value, self.allowed = key, value, ", ".join(similar)


@dataclass(frozen=True)
class ServeSettings:
    """The settings of one server.

    Parameters
    ----------
    studies : str
        Folder, or URL of a DICOMweb server.
    host, port : str, int
        Where to listen.
    workspace : Path or None
        None for the studies' own.
    warm_up : bool
        Whether the models are loaded before the server answers.
    token_file : Path or None
        Tokens of the users.
    certificate : tuple of Path or None
        Certificate chain and private key for TLS.
    behind_proxy : str or None
        Addresses of a proxy that ends TLS.
    insecure : bool
        Whether requests from other machines are allowed without authentication or TLS.
    oidc : OidcOptions or None
        Provider of the users' tokens.
    conf : dict of str to str
        All others, see `AppConf.from_strings`.
    """

    studies: str
    host: str = "127.0.0.1"
    port: int = 8000
    workspace: Path | None = None
    warm_up: bool = False
    token_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
    behind_proxy: str | None = None
    insecure: bool = False
    oidc: OidcOptions | None = None
    conf: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> ServeSettings:
        """Type what `gather_settings` returns.

        Raises
        ------
        OptionError
            If a name is unknown or a value is not allowed.
        InputError
            If something is missing: the studies, or one of certificate and key.
        """
        chosen = dict(given)
        for key, value in chosen.items():
            if key not in SETTINGS:
                raise UnknownSettingError(key, value, SETTINGS)
        studies = chosen.pop("studies", "").strip()
        if not studies:
            raise InputError("The studies are missing; name a folder or a DICOMweb server with --studies.")
        port = chosen.pop("port", "8000").strip()
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise OptionError("port", port, "a whole number from 0 to 65535")
        paths = {key: _path(chosen.pop(key, "")) for key in ("workspace", "token_file", "ssl_certfile", "ssl_keyfile")}
        chain, private = paths["ssl_certfile"], paths["ssl_keyfile"]
        if (chain is None) != (private is None):
            raise InputError("TLS needs both --ssl-certfile and --ssl-keyfile.")
        oidc = {key: chosen.pop(key) for key in [key for key in chosen if key.startswith("oidc_")]}
        return cls(
            studies,
            host=chosen.pop("host", "127.0.0.1").strip(),
            port=int(port),
            workspace=paths["workspace"],
            warm_up=as_switch("warm_up", chosen.pop("warm_up", "false")),
            token_file=paths["token_file"],
            certificate=(chain, private) if chain and private else None,
            behind_proxy=chosen.pop("behind_proxy", "").strip() or None,
            insecure=as_switch("insecure", chosen.pop("insecure", "false")),
            oidc=OidcOptions.from_strings({key.removeprefix("oidc_"): value for key, value in oidc.items()}),
            conf=chosen,
        )


def join_values(arguments: Sequence[str]) -> list[str]:
    """Return command line arguments in which values that begin with a dash are told apart from flags.

    `--conf KEY VALUE` takes any value, and a flag one that begins like a negative number, such as -600/1500.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    list of str
        For a parser with `add_flags`, or any other where they hold no `--conf`.
    """
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and joined[-2:-1] == ["--conf"]:
            joined.append(_VALUE + argument)
        elif re.match(r"-\.?\d", argument) and joined and re.fullmatch(r"--[a-z][a-z0-9-]*", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting, `--conf` and `--config` to the parser of `serve`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in a YAML file")
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        type=lambda text: text.removeprefix(_VALUE),
        metavar=("KEY", "VALUE"),
        help="any setting by its name; may be repeated",
    )
    groups: dict[str, Any] = {}
    for setting in SETTINGS.values():
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.kind == "switch" else {}
        if setting.absent:
            more = {"nargs": "?", "const": setting.absent}
        if setting.kind == "list":
            more = {"action": "append"}
        groups[setting.group].add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            metavar={"switch": "true|false", "object": "JSON"}.get(setting.kind, "VALUE"),
            # 50 options that another page explains would hide the rest
            help=argparse.SUPPRESS if setting.group in (_TRAINING, _FINETUNE) else setting.help,
            **more,
        )


def settings_of(given: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServeSettings:
    """Return the settings of a command line whose parser has `add_flags`, and of the environment.

    Raises
    ------
    InputError
        See `gather_settings` and `ServeSettings.from_strings`.
    """
    flags = {name: value for name in SETTINGS if (value := getattr(given, f"setting_{name}")) is not None}
    return ServeSettings.from_strings(gather_settings(flags, given.conf, environment, given.config))


def gather_settings(
    flags: Mapping[str, Any],
    conf: Iterable[Iterable[str]],
    environment: Mapping[str, str],
    file: Path | None,
) -> dict[str, str]:
    """Put the four ways of giving settings together.

    Parameters
    ----------
    flags : mapping of str to str or list
        Those that were given, by the settings' names.
    conf : iterable of (key, value)
        Of `--conf`; of a repeated key the last one counts.
    environment : mapping of str to str
        Variables; an empty one counts as not given.
    file : Path or None
        YAML file; None takes the one that MEDCLIPSAM_CONFIG names, if any.

    Returns
    -------
    dict of str to str
        Name to text of each setting that was given.

    Raises
    ------
    UnknownSettingError
        If a name is unknown, of a variable that begins with MEDCLIPSAM_ too.
    InputError
        If the file cannot be read or a value of it has no text.
    """
    file = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    found = {} if file is None else _read_file(file)
    found |= _read_environment(environment)
    for key, value in conf:
        if key not in SETTINGS:
            raise UnknownSettingError(key, value, SETTINGS, "of --conf")
        found[key] = value
    return found | {key: _as_text(SETTINGS[key], value, "") for key, value in flags.items()}


def as_switch(key: str, text: str) -> bool:
    """Return a switch's text as a bool.

    Raises
    ------
    OptionError
        If it is neither true nor false.
    """
    value = _WORDS.get(str(text).strip().lower())
    if value is None:
        raise OptionError(key, text, "true or false")
    return value


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    variables = {each.variable: each.name for each in SETTINGS.values()}
    found = {}
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable in OTHER_VARIABLES or not value:
            continue
        if variable not in variables:
            raise UnknownSettingError(variable, value, [*variables, *OTHER_VARIABLES], "of the environment")
        found[variables[variable]] = value
    return found


def _read_file(file: Path) -> dict[str, str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Settings file {file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"Settings file {file} is not YAML: {reason}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"Settings file {file} must hold names of settings with their values, as in port: 8000.")
    found = {}
    for key, value in content.items():
        if key not in SETTINGS:
            raise UnknownSettingError(str(key), value, SETTINGS, f"in {file}")
        if value is not None:
            found[key] = _as_text(SETTINGS[key], value, f" in {file}")
    return found


def _as_text(setting: Setting, value: Any, where: str) -> str:
    """Return a value of YAML, or of a repeated flag, as the text that `--conf` would hold."""
    separator = ";" if setting.name == "pacs_filter" else ","
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if setting.kind == "list" and isinstance(value, list) and all(isinstance(each, (str, int)) for each in value):
        return separator.join(map(str, value))
    if setting.kind == "object" and isinstance(value, dict):
        return json.dumps(value)
    allowed = {"list": "a text, or a list of texts", "object": "a mapping, or its JSON"}
    raise OptionError(setting.name, value, allowed.get(setting.kind, "a text, a number, true or false") + where)


def _path(text: str) -> Path | None:
    return Path(text.strip()).expanduser() if text.strip() else None
