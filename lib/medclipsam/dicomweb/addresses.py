"""Addresses of DICOMweb servers that hold a user name and a password."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

USER_VARIABLE, PASSWORD_VARIABLE = "MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD"
_WITH_USER = re.compile(r"(?P<flag>--[a-z-]+=)?(?P<url>https?://[^/?#]*@.*)", re.IGNORECASE | re.DOTALL)


def is_url(studies: str) -> bool:
    """Return whether studies are those of a DICOMweb server."""
    return studies.lower().startswith(("http://", "https://"))


def without_user(url: str) -> str:
    """Return a URL without the user name and password that may be in it, and without a slash at its end."""
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), parts.query, ""))


def user_of(url: str) -> tuple[str, str] | None:
    """Return the user name and password in a URL; None where there is none."""
    parts = urlsplit(url.strip())
    return (unquote(parts.username), unquote(parts.password or "")) if parts.username else None


def keep_user(url: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Put the user name and password of a URL into the environment, and return the URL without them."""
    found = user_of(url)
    if found is not None:
        environment[USER_VARIABLE], environment[PASSWORD_VARIABLE] = found
    return without_user(url)


def hide_passwords(command: Sequence[str] | None = None) -> None:
    """Start this process again without the passwords on its command line, which all users of the machine can see.

    The process keeps its id. A user name and password of a URL go into the environment, which the owner alone can see.

    Parameters
    ----------
    command : sequence of str, optional
        The command line, that of this process by default.

    Notes
    -----
    Nothing happens where there is no password, and on Windows, where a process cannot be replaced.
    """
    words = list(sys.orig_argv if command is None else command)
    shown = [_WITH_USER.fullmatch(word) for word in words]
    if os.name == "nt" or not any(shown):
        return
    environment = dict(os.environ)
    for number, found in enumerate(shown):
        if found:
            words[number] = (found["flag"] or "") + keep_user(found["url"], environment)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, words, environment)
