"""What networks are called."""

from __future__ import annotations

import re
from typing import TypeGuard

from medclipsam.base.errors import OptionError

DEFAULT_NAME = "network"
# So that no other model of a server can have the name, and that a name is no path.
_NAME = re.compile(r"network(_[a-z0-9]+)*")
_LONGEST = 60


def is_network_name(name: object) -> TypeGuard[str]:
    """Return whether networks may be called so."""
    return isinstance(name, str) and len(name) <= _LONGEST and _NAME.fullmatch(name) is not None


def checked_network_name(name: object) -> str:
    """Return the name of networks.

    Raises
    ------
    OptionError
        If it is none.
    """
    if not is_network_name(name):
        raise OptionError("name", str(name)[:80], "network, or network_ and small letters and digits: network_lungs")
    return name
