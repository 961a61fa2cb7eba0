"""Sessions that have ended: MONAI Label's own clean-up stops for ever at the first folder that is not complete."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions

logger = logging.getLogger(__name__)

# A session's folder that is not complete is that of a server which was killed, after so many seconds.
_LEFT_SECONDS = 3600.0


def expire_sessions(sessions: Sessions) -> int:
    """Remove the sessions that have expired, of an earlier server too, and what is left of incomplete ones.

    Parameters
    ----------
    sessions : Sessions
        MONAI Label's sessions.

    Returns
    -------
    int
        How many were removed.
    """
    place, now, removed = Path(sessions.store_path), time.time(), 0
    for folder in place.iterdir() if place.is_dir() else ():
        try:
            changed = folder.stat().st_mtime
            if not folder.is_dir():
                continue
            info = sessions.get_session(folder.name, update_ts=False, fetch_cache=False)
            ends = info.last_access_ts + info.expiry if info is not None else changed + _LEFT_SECONDS
        except FileNotFoundError:  # removed at the same moment
            continue
        except Exception as error:
            logger.warning("A session cannot be read (%s)", type(error).__name__)
            ends = changed + _LEFT_SECONDS
        if ends < now:
            sessions.remove_session(folder.name)
            removed += 1
    return removed
