"""Answers of a DICOMweb server that are passed on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from medclipsam.server.api.routes.proxy import _replaced


def test_addresses_are_replaced_wherever_blocks_are_cut() -> None:
    rng = random.Random(1)

    async def replaced(parts: list[bytes]) -> bytes:
        async def blocks() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return b"".join([block async for block in _replaced(blocks(), b"abab", b"XY")])

    for _ in range(500):
        body = bytes(rng.choice(b"abab c") for _ in range(rng.randint(0, 60)))
        cuts = sorted(rng.randint(0, len(body)) for _ in range(rng.randint(0, 8)))
        parts = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert asyncio.run(replaced(parts)) == body.replace(b"abab", b"XY")
