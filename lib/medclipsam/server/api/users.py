"""Users and their roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["admin", "reviewer", "annotator", "user"]

# From the most to the least: a token's user has its own role and those after it.
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class User:
    """Who sends a request.

    Parameters
    ----------
    username : str
        As authentication names the user.
    roles : tuple of str
        Names of the roles, as MONAI Label's settings name them.
    """

    username: str
    roles: tuple[str, ...] = ()

    def has(self, role: Role) -> bool:
        """Return whether the user has a role."""
        return role_name(role) in self.roles


def role_name(role: Role) -> str:
    """Return the name that MONAI Label's settings give a role."""
    from medclipsam.server.monai_label.upstream import settings

    return str(getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{role.upper()}"))
