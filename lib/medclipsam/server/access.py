"""Who may call what: the roles of MONAI Label, asked for by each route."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

Role = Literal["admin", "reviewer", "annotator", "user"]


def requires(role: Role) -> Any:
    """Return the dependency of a route that asks for `role`; its value is the user.

    Use it as `user: User = requires("user")`, or in a router's `dependencies=[requires("user")]`.
    """
    return Depends(RBAC(getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{role.upper()}")))
