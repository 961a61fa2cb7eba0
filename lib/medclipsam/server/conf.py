"""The app's configuration: typed once from the strings of `--conf key value`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from medclipsam.errors import OptionError
from medclipsam.options import ZeroShotOptions

_OPTION_KEYS = frozenset(option.name for option in dataclasses.fields(ZeroShotOptions))
_APP_KEYS = ("targets", "weights", "device", "targets_file")
# MONAI Label's base class reads this one from the same table.
_MONAI_LABEL_KEYS = frozenset({"server_mode"})
_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


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
    """

    targets: tuple[str, ...] = ()
    weights: str = "demo"
    device: str | None = None
    targets_files: tuple[str, ...] = ()
    defaults: ZeroShotOptions = field(default_factory=ZeroShotOptions)

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
            if key not in _OPTION_KEYS and key not in _APP_KEYS:
                raise OptionError(key, value, "one of the settings " + ", ".join([*_APP_KEYS, *sorted(_OPTION_KEYS)]))
            chosen[key] = value
        device = chosen.pop("device", "auto").strip()
        if device != "auto" and not _DEVICE.fullmatch(device):
            raise OptionError("device", device, "auto, cpu, cuda, cuda:0 ... or mps")
        weights = chosen.pop("weights", "demo").strip()
        if not weights:
            raise OptionError("weights", weights, "the name of a weights bundle, such as demo")
        return cls(
            targets=split_names(chosen.pop("targets", "")),
            weights=weights,
            device=None if device == "auto" else device,
            targets_files=split_names(chosen.pop("targets_file", "")),
            defaults=ZeroShotOptions.from_mapping(chosen),
        )


def split_names(text: str) -> tuple[str, ...]:
    """Split "breast tumour, lungs x-ray" at commas and semicolons into names."""
    return tuple(name for part in re.split("[,;]", text) if (name := part.strip()))
