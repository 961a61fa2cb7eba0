"""The app's configuration: typed once from the strings of `--conf key value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from medclipsam.base.errors import OptionError, UnknownOptionError
from medclipsam.base.options import Options, ZeroShotOptions, option
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.server.base.rounds_options import RoundsOptions
from medclipsam.training.options import TrainingOptions
from medclipsam.training.settings import Request, RunOptions
from medclipsam.training.split import Split
from medclipsam.weights import default_pair

# Headings under which the settings are listed.
MODELS, ACCESS, LIMITS, AUDIT = "models and targets", "access", "limits", "audit"
NETWORKS, ROUNDS, PACS = "trained networks", "rounds", "DICOMweb server"

TRAINING_PREFIX = "train_"
FINETUNE_PREFIX = "finetune_"
# MONAI Label's base class reads this one from the same table.
_MONAI_LABEL_KEYS = frozenset({"server_mode"})


class UnknownSettingError(UnknownOptionError):
    """A setting has a name that there is not."""

    def __init__(self, key: str, value: object, names: Mapping[str, Any], where: str = "the server") -> None:
        super().__init__(key, value, names, what=where)


class Limits(Options):
    """What a server lets its clients have."""

    queue_length: int = option(8, "Number of requests that may wait for the models", 0, 1000)
    max_seconds: int = option(
        1800, "Longest time that a request may take; a longer estimate is refused at once", 1, 7 * 24 * 3600, unit="s"
    )
    max_upload_mb: int = option(
        2048, "Largest request; an archive may unpack to four times as much", 1, 1024 * 1024, unit="MiB"
    )
    cache_days: int = option(7, "Time that fetched DICOM series are kept unused", 1, 3650, unit="days")


class AppSettings(Options):
    """The settings that concern the app itself."""

    targets: tuple[str, ...] = option(
        (),
        "Targets that are served as models of their own",
        allowed="names, separated by commas",
        shown="none",
        group=MODELS,
    )
    targets_files: tuple[str, ...] = option(
        (),
        "Further targets (YAML)",
        allowed="files, separated by commas",
        shown="none",
        setting="targets_file",
        group=MODELS,
    )
    weights: str = option(default_pair, "Pair of weights, see `medclipsam weights list`", shown="default", group=MODELS)
    device: str | None = option(
        None,
        "Device: cpu, cuda, cuda:1 (auto: the GPU where there is one)",
        pattern=r"^(cpu|cuda(:[0-9]+)?|mps)$",
        allowed="auto, cpu, cuda, cuda:0 ... or mps",
        group=MODELS,
    )
    release_models: bool = option(
        False, "Drop the models for a training or batch that needs their memory", group=MODELS
    )
    label_access: Literal["folder", "owner"] = option(
        "folder",
        "Readers of labels in a studies folder: who may read the folder, or the server's account",
        group=ACCESS,
    )
    audit_file: str | None = option(None, "File that notes each mask and label", shown="in the workspace", group=AUDIT)
    audit_text: bool = option(False, "Note the texts of requests in the audit file", group=AUDIT)
    networks: str | None = option(None, "Folder of the trained networks", shown="in the workspace", group=NETWORKS)
    ledger: str | None = option(None, "File of the rounds", shown="in the workspace", setting="rounds", group=ROUNDS)

    @field_validator("targets", "targets_files", mode="before")
    @classmethod
    def _are_names(cls, given: Any) -> Any:
        return split_names(given) if isinstance(given, str) else given


class AppConf(AppSettings):
    """Configuration of the app: its own settings, and the sets of options that it hands on.

    Parameters
    ----------
    defaults : ZeroShotOptions
        What a request's options are when the request does not say.
    limits : Limits
        What clients may have.
    split : Split or None
        How the patients that networks are validated with are drawn; None takes what was kept, or the defaults.
    pacs : PacsOptions
        How the DICOMweb server of the studies is asked.
    rounds : RoundsOptions
        How rounds go.
    training : dict of str to object
        Options of trainings whose request does not name them, see `medclipsam.training.settings.Request`.
    finetuning : dict of str to object
        Options of fine-tunings whose request does not name them, see `medclipsam.finetune.options.FinetuneOptions`.
    """

    defaults: ZeroShotOptions = Field(default_factory=ZeroShotOptions)
    limits: Limits = Field(default_factory=Limits)
    split: Split | None = None
    pacs: PacsOptions = Field(default_factory=PacsOptions)
    rounds: RoundsOptions = Field(default_factory=RoundsOptions)
    training: dict[str, Any] = Field(default_factory=dict)
    finetuning: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_strings(cls, conf: Mapping[str, str]) -> Self:
        """Read `--conf` strings.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        given = {key: str(value) for key, value in conf.items() if key not in _MONAI_LABEL_KEYS}
        known = {name for options, prefix, _ in APP_SETS for name in options.settings(prefix)}
        for key, value in given.items():
            if key not in known:
                raise UnknownSettingError(key, value, dict.fromkeys(known))
        if not given.get("weights", "default").strip():
            raise OptionError("weights", given["weights"], "the name of a pair of weights, such as default")
        split = {key: text for key, text in given.items() if key in Split.settings()}
        return cls(
            **dict(AppSettings.from_settings(given)),
            defaults=ZeroShotOptions.from_settings(given),
            limits=Limits.from_settings(given),
            split=Split.from_settings(split) if split else None,
            pacs=PacsOptions.from_settings(given),
            rounds=RoundsOptions.from_settings(given),
            training=_defaults(given, Request, TRAINING_PREFIX),
            finetuning=_defaults(given, FinetuneOptions, FINETUNE_PREFIX),
        )


# The sets of the app's settings, what goes before their names, and the heading of those that name none.
APP_SETS: tuple[tuple[type[Options], str, str], ...] = (
    (AppSettings, "", ""),
    (Limits, "", LIMITS),
    (Split, Split.prefix, NETWORKS),
    (RoundsOptions, "", ROUNDS),
    (PacsOptions, PacsOptions.prefix, PACS),
    (ZeroShotOptions, "", "pipeline"),
    (RunOptions, TRAINING_PREFIX, "training"),
    (TrainingOptions, TRAINING_PREFIX, "training"),
    (FinetuneOptions, FINETUNE_PREFIX, "fine-tuning"),
)


def _defaults(given: Mapping[str, str], options: type[Request] | type[FinetuneOptions], prefix: str) -> dict[str, Any]:
    """Return the typed options of trainings or fine-tunings, those alone that were given."""
    chosen = {key.removeprefix(prefix): text for key, text in given.items() if key.startswith(prefix)}
    try:
        typed = options.from_mapping(chosen).to_dict()
    except OptionError as error:
        raise OptionError(prefix + error.key, error.value, error.allowed) from None
    return {key: typed[key] for key, text in chosen.items() if text.strip() not in ("", "auto")}


def split_names(text: str) -> tuple[str, ...]:
    """Split "breast tumour, lungs x-ray" at commas and semicolons into names."""
    return tuple(name for part in re.split("[,;]", text) if (name := part.strip()))
