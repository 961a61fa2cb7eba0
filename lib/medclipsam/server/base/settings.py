"""Every setting of `medclipsam serve`, and the four ways to give it: flag, `--conf`, environment variable, YAML file.

A flag takes precedence over `--conf`, that over the environment, that over the file, and that over the default.
All four lead to the same texts, which are typed once: here for what concerns the process, by `AppConf` for all else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.options import Option, Options, option
from medclipsam.server.base.conf import ACCESS, APP_SETS, FINETUNE_PREFIX, TRAINING_PREFIX, UnknownSettingError
from medclipsam.server.base.oidc_options import OidcOptions

_PREFIX = "MEDCLIPSAM_"
CONFIG_VARIABLE = _PREFIX + "CONFIG"
# Variables of this package that are no settings.
OTHER_VARIABLES = frozenset(
    {
        CONFIG_VARIABLE,
        "MEDCLIPSAM_ENGINE",
        "MEDCLIPSAM_VIEWER",
        "MEDCLIPSAM_WEIGHTS",
        "MEDCLIPSAM_TOKEN",
        "MEDCLIPSAM_PACS_TOKEN",
        "MEDCLIPSAM_OIDC_CLIENT_SECRET",
    }
)
_PROXY = "127.0.0.1"
# Headings under which the settings are listed.
SERVER, OIDC = "server", "OpenID Connect"
# Goes before a value that begins with a dash, which argparse would take for a flag; no argument can hold it.
_VALUE = "\0"


class ProcessSettings(Options):
    """The settings that concern the server's process."""

    studies: str = option(..., "Folder of images, or URL of a DICOMweb server", group=SERVER, shown="required")
    host: str = option("127.0.0.1", "Address to listen on", group=SERVER)
    port: int = option(8000, "Port to listen on, 0 for a free one", 0, 65535, group=SERVER)
    workspace: Path | None = option(
        None, "Folder that the server writes to", shown="one for each studies", allowed="a folder", group=SERVER
    )
    warm_up: bool = option(False, "Load the models before the server answers", group=SERVER)
    token_file: Path | None = option(
        None,
        "File with the users' tokens, one a line: USER ROLE TOKEN",
        shown="none",
        allowed="a file",
        group=ACCESS,
    )
    ssl_certfile: Path | None = option(
        None, "Certificate chain for TLS (PEM)", shown="none", allowed="a file", group=ACCESS
    )
    ssl_keyfile: Path | None = option(
        None, "Private key of the certificate (PEM)", shown="none", allowed="a file", group=ACCESS
    )
    behind_proxy: str | None = option(
        None, f"Address of a proxy that ends TLS ({_PROXY} if the flag has no value)", shown="none", group=ACCESS
    )
    insecure: bool = option(False, "Allow requests from other machines without authentication or TLS", group=ACCESS)


class ServeSettings(ProcessSettings):
    """The settings of one server.

    Parameters
    ----------
    oidc : OidcOptions or None
        Provider of the users' tokens.
    conf : dict of str to str
        The settings of the app, see `AppConf.from_strings`.
    """

    oidc: OidcOptions | None = None
    conf: dict[str, str] = Field(default_factory=dict)

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        """Certificate chain and private key for TLS."""
        return (self.ssl_certfile, self.ssl_keyfile) if self.ssl_certfile and self.ssl_keyfile else None

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> Self:
        """Type what `gather_settings` returns.

        Raises
        ------
        OptionError
            If a name is unknown or a value is not allowed.
        InputError
            If something is missing: the studies, or one of certificate and key.
        """
        for key, value in given.items():
            if key not in SETTINGS:
                raise UnknownSettingError(key, value, SETTINGS)
        if not given.get("studies", "").strip():
            raise InputError("The studies are missing; name a folder or a DICOMweb server with --studies.")
        own = ProcessSettings.from_settings(given)
        if (own.ssl_certfile is None) != (own.ssl_keyfile is None):
            raise InputError("TLS needs both --ssl-certfile and --ssl-keyfile.")
        oidc = OidcOptions.from_strings(
            {field: given[name] for name, field in OidcOptions.settings().items() if name in given}
        )
        conf = {key: value for key, value in given.items() if key in APP_SETTINGS}
        return cls(**dict(own), oidc=oidc, conf=conf)


@dataclass(frozen=True)
class Setting:
    """One setting.

    Parameters
    ----------
    name : str
        As `--conf` and a YAML file name it.
    option : Option
        What it sets.
    group : str
        Under which `--help` lists it.
    """

    name: str
    option: Option
    group: str

    @property
    def flag(self) -> str:
        """The flag of `serve`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        # MEDCLIPSAM_WEIGHTS names the folder of all weights, for all commands
        return _PREFIX + ("WEIGHTS_NAME" if self.name == "weights" else self.name.upper())


def _settings(*sets: tuple[type[Options], str, str]) -> dict[str, Setting]:
    return {
        name: Setting(name, options.options()[field], options.options()[field].more.get("group", group))
        for options, prefix, group in sets
        for name, field in options.settings(prefix).items()
    }


# Those that the app reads, which MONAI Label's own start command can give it as well.
APP_SETTINGS = _settings(*APP_SETS)
SETTINGS = {**_settings((ProcessSettings, "", ""), (OidcOptions, OidcOptions.prefix, OIDC)), **APP_SETTINGS}


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
        kind, about = setting.option.kind, setting.option.help
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if kind == "switch" else {}
        if setting.name == "behind_proxy":
            more = {"nargs": "?", "const": _PROXY}
        if kind == "list":
            more = {"action": "append"}
        groups[setting.group].add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            metavar=setting.option.metavar or "|".join(setting.option.choices),
            # The options of `train run` and `finetune run`, which their own help explains, would hide the rest.
            help=argparse.SUPPRESS if setting.name.startswith((TRAINING_PREFIX, FINETUNE_PREFIX)) else about,
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
            raise UnknownSettingError(key, value, SETTINGS, "--conf")
        found[key] = value
    return found | {key: _as_text(SETTINGS[key], value, "") for key, value in flags.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    variables = {each.variable: each.name for each in SETTINGS.values()}
    found = {}
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable in OTHER_VARIABLES or not value:
            continue
        if variable not in variables:
            raise UnknownSettingError(
                variable, value, {**variables, **dict.fromkeys(OTHER_VARIABLES)}, "the environment"
            )
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
            raise UnknownSettingError(str(key), value, SETTINGS, str(file))
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
    if (
        setting.option.kind == "list"
        and isinstance(value, list)
        and all(isinstance(each, (str, int)) for each in value)
    ):
        return separator.join(map(str, value))
    if setting.option.kind == "object" and isinstance(value, dict):
        return json.dumps(value)
    allowed = {"list": "a text, or a list of texts", "object": "a mapping, or its JSON"}
    raise OptionError(setting.name, value, allowed.get(setting.option.kind, "a text, a number, true or false") + where)
