"""The app's configuration: typed once from the strings of `--conf key value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medclipsam.base.errors import OptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.server.base.pacs_options import PACS_KEYS, PacsOptions
from medclipsam.server.base.rounds_options import RoundsOptions
from medclipsam.server.base.settings import (
    APP_SETTINGS,
    FINETUNE_PREFIX,
    TRAINING_PREFIX,
    UnknownSettingError,
    as_switch,
)
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.weights import default_pair

# What a server lets its clients have: key -> (least, greatest), all whole numbers.
_LIMITS: dict[str, tuple[int, int]] = {
    "queue_length": (0, 1000),
    "max_seconds": (1, 7 * 24 * 3600),
    "max_upload_mb": (1, 1024 * 1024),
    "cache_days": (1, 3650),
}

_ROUNDS = tuple(RoundsOptions.options())

_PACS_KEYS = tuple(f"pacs_{key}" for key in PACS_KEYS)
# MONAI Label's base class reads this one from the same table.
_MONAI_LABEL_KEYS = frozenset({"server_mode"})
# Who may read the labels in a studies folder: whoever may read that folder, or the server's account alone.
LABEL_ACCESS = ("folder", "owner")
_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?|mps")


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients have.

    Parameters
    ----------
    queue_length : int
        Requests that may wait for the models beside the one that is worked on.
    max_seconds : int
        Longest a request may take; one that is estimated to take longer is refused at once.
    max_upload_mb : int
        Largest body of a request, in MiB; an archive may unpack to four times as much.
    cache_days : int
        Days after which series fetched from a DICOMweb server and no longer asked for are removed.
    """

    queue_length: int = 8
    max_seconds: int = 1800
    max_upload_mb: int = 2048
    cache_days: int = 7

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> Limits:
        """Read `--conf` strings.

        Raises
        ------
        OptionError
            If a value is no whole number or out of range.
        """
        values: dict[str, int] = {}
        for key, text in given.items():
            low, high = _LIMITS[key]
            if not re.fullmatch(r"[0-9]{1,9}", str(text).strip()) or not low <= int(text) <= high:
                raise OptionError(key, text, f"a whole number from {low} to {high}")
            values[key] = int(text)
        return cls(**values)


@dataclass(frozen=True)
class AppConf:
    """Configuration of the app.

    Parameters
    ----------
    targets : tuple of str
        Names of the known targets that get an infer task of their own.
    weights : str
        Name of the weights bundle.
    device : str or None
        "cpu", "cuda", "cuda:1" ...; None takes the GPU where there is one.
    targets_files : tuple of str
        Targets files that are read after the package's own.
    defaults : ZeroShotOptions
        What a request's options are when the request does not say.
    limits : Limits
        What clients may have.
    audit_file : str or None
        Where each mask and label is noted; None keeps no notes.
    audit_text : bool
        Whether the notes hold the texts that were asked for.
    release_models : bool
        Whether the server drops its models where a training or a batch would not fit beside them.
    networks : str or None
        Folder of the trained networks; None takes the one of the studies' default workspace.
    split : Split or None
        How the patients that networks are validated with are drawn; None takes what was kept, or the defaults.
    pacs : PacsOptions
        How the DICOMweb server of the studies is asked.
    ledger : str or None
        File of the rounds; None takes the one of the studies' default workspace.
    rounds : RoundsOptions
        How rounds go.
    training : mapping of str to object
        Options of trainings whose request does not name them, see `medclipsam.training.settings.Request`.
    finetuning : mapping of str to object
        Options of fine-tunings whose request does not name them, see `medclipsam.finetune.options.FinetuneOptions`.
    label_access : {"folder", "owner"}
        Who may read the labels in a studies folder: whoever may read that folder, or the server's account alone.
    """

    targets: tuple[str, ...] = ()
    weights: str = field(default_factory=default_pair)
    device: str | None = None
    targets_files: tuple[str, ...] = ()
    defaults: ZeroShotOptions = field(default_factory=ZeroShotOptions)
    limits: Limits = field(default_factory=Limits)
    audit_file: str | None = None
    audit_text: bool = False
    release_models: bool = False
    networks: str | None = None
    split: Split | None = None
    pacs: PacsOptions = field(default_factory=PacsOptions)
    ledger: str | None = None
    rounds: RoundsOptions = field(default_factory=RoundsOptions)
    training: Mapping[str, Any] = field(default_factory=dict)
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    label_access: str = "folder"

    @classmethod
    def from_strings(cls, conf: Mapping[str, str]) -> AppConf:
        """Read `--conf` strings.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        chosen: dict[str, str] = {}
        for key, value in conf.items():
            if key in _MONAI_LABEL_KEYS:
                continue
            if key not in APP_SETTINGS:
                raise UnknownSettingError(key, value, APP_SETTINGS)
            chosen[key] = value
        device = chosen.pop("device", "auto").strip()
        if device != "auto" and not _DEVICE.fullmatch(device):
            raise OptionError("device", device, "auto, cpu, cuda, cuda:0 ... or mps")
        weights = chosen.pop("weights", default_pair()).strip()
        if not weights:
            raise OptionError("weights", weights, "the name of a pair of weights, such as default")
        label_access = chosen.pop("label_access", "folder").strip()
        if label_access not in LABEL_ACCESS:
            raise OptionError("label_access", label_access, " or ".join(LABEL_ACCESS))
        switches = {key: as_switch(key, chosen.pop(key, "false")) for key in ("audit_text", "release_models")}
        rounds = {key: chosen.pop(key) for key in _ROUNDS if key in chosen}
        training, finetuning = (
            {key.removeprefix(prefix): chosen.pop(key) for key in list(chosen) if key.startswith(prefix)}
            for prefix in (TRAINING_PREFIX, FINETUNE_PREFIX)
        )
        limits = {key: chosen.pop(key) for key in _LIMITS if key in chosen}
        pacs = {key.removeprefix("pacs_"): chosen.pop(key) for key in _PACS_KEYS if key in chosen}
        return cls(
            targets=split_names(chosen.pop("targets", "")),
            weights=weights,
            device=None if device == "auto" else device,
            targets_files=split_names(chosen.pop("targets_file", "")),
            limits=Limits.from_strings(limits),
            pacs=PacsOptions.from_strings(pacs),
            audit_file=chosen.pop("audit_file", "").strip() or None,
            networks=chosen.pop("networks", "").strip() or None,
            ledger=chosen.pop("rounds", "").strip() or None,
            rounds=RoundsOptions.from_mapping(rounds),
            split=_split(chosen.pop("validation_share", None), chosen.pop("validation_seed", None)),
            training=_defaults(training, Request, TRAINING_PREFIX),
            finetuning=_defaults(finetuning, FinetuneOptions, FINETUNE_PREFIX),
            label_access=label_access,
            **switches,
            defaults=ZeroShotOptions.from_mapping(chosen),
        )


def _split(share: str | None, seed: str | None) -> Split | None:
    if share is None and seed is None:
        return None
    default, given = Split(), {}
    for key, text, number in (("validation_share", share, float), ("validation_seed", seed, int)):
        try:
            given[key] = None if text is None else number(str(text))
        except ValueError:
            raise OptionError(key, text, "a number") from None
    wanted_share, wanted_seed = given["validation_share"], given["validation_seed"]
    return Split(
        default.seed if wanted_seed is None else int(wanted_seed),
        default.share if wanted_share is None else float(wanted_share),
    )


def _defaults(given: Mapping[str, str], options: type[Request] | type[FinetuneOptions], prefix: str) -> dict[str, Any]:
    """Return the typed options of trainings or fine-tunings, those alone that were given."""
    try:
        typed = options.from_mapping(given).to_dict()
    except OptionError as error:
        raise OptionError(prefix + error.key, error.value, error.allowed) from None
    return {key: typed[key] for key, value in given.items() if str(value).strip() not in ("", "auto")}


def split_names(text: str) -> tuple[str, ...]:
    """Split "breast tumour, lungs x-ray" at commas and semicolons into names."""
    return tuple(name for part in re.split("[,;]", text) if (name := part.strip()))
