"""Which images two people read."""

from __future__ import annotations

import hashlib


def is_read_twice(image: str, share: float, seed: int = 0) -> bool:
    """Return whether an image is among the share that a second person reads too.

    Depends on the image's id and the seed alone: not on which other images there are, and not on who reads them. A
    greater share holds all images of a smaller one.

    Parameters
    ----------
    image : str
        Its id.
    share : float
        From 0 to 1.
    seed : int

    Examples
    --------
    >>> is_read_twice("chest-1", 1.0), is_read_twice("chest-1", 0.0)
    (True, False)
    """
    digest = hashlib.blake2b(f"{seed}:{image}".encode(), digest_size=8).digest()
    # of 53 bits, so that it is exact and below 1
    return (int.from_bytes(digest, "little") >> 11) / 2**53 < share
