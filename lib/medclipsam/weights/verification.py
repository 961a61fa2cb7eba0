"""Weights checked again, whatever is remembered of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medclipsam.base.errors import WeightsError
from medclipsam.weights.hashes import cached_sha256, checked_sha256, expected_hashes
from medclipsam.weights.own import stated_hash
from medclipsam.weights.registry import REGISTRY
from medclipsam.weights.resolution import ResolvedWeights, how_to_get, resolve, single_names


@dataclass(frozen=True)
class CheckedFile:
    """A file whose hash was computed anew; `against` says what it was compared with."""

    path: Path
    sha256: str
    against: str


def verify(name: str) -> list[CheckedFile]:
    """Compute the hashes of weights anew, whatever is remembered, and compare them.

    Parameters
    ----------
    name : str
        Anything that `resolve` takes, a name of `PAIRS`, or two names joined by "+".

    Returns
    -------
    list of CheckedFile

    Raises
    ------
    WeightsError
        If files are missing or not the published ones.
    """
    checked: list[CheckedFile] = []
    for half in single_names(name):
        published = REGISTRY.get(half)
        if published is None or published.in_package:
            checked += _verify_own(resolve(half))
            continue
        if published.missing():
            raise WeightsError(how_to_get([published]))
        expected = expected_hashes(published)
        for file in published.files:
            path = published.folder / file.name
            found = checked_sha256(path, expected.get(file.name), fresh=True)
            recorded = "the hash recorded when it was fetched" if file.name in expected else "nothing published"
            checked.append(CheckedFile(path, found, "the published hash" if file.sha256 else recorded))
    return checked


def _verify_own(weights: ResolvedWeights) -> list[CheckedFile]:
    if weights.path.is_dir():
        files = sorted(file for file in weights.path.iterdir() if file.is_file())
        return [CheckedFile(file, cached_sha256(file, fresh=True), "nothing published") for file in files]
    expected = stated_hash(weights.path)
    found = checked_sha256(weights.path, expected, fresh=True)
    return [CheckedFile(weights.path, found, "the hash in its description" if expected else "nothing published")]
