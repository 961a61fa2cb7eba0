"""A whole fine-tuning: from weights and pairs to a folder of new weights and their figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam import __version__
from medclipsam.finetune.calibrate import calibrate
from medclipsam.finetune.data import Listing, PreparedPairs, prepare, split_listing
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.finetune.result import write_result
from medclipsam.finetune.retrieval import Retrieval, retrieval
from medclipsam.finetune.trainer import Progress, Trained, features_of, train
from medclipsam.pipeline.zero_shot import load_encoder
from medclipsam.targets import TargetSet
from medclipsam.weights import ResolvedWeights, resolve_clip

RESULT = "model"


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning made.

    Attributes
    ----------
    folder : pathlib.Path
        The new weights.
    trained : Trained
        How the training went.
    card : dict
        What `finetuned.json` holds.
    """

    folder: Path
    trained: Trained
    card: dict[str, Any]


def finetune(
    weights: str,
    pairs: Listing,
    folder: Path,
    options: FinetuneOptions,
    *,
    validation: Listing | None = None,
    device: str = "cpu",
    targets: TargetSet | None = None,
    restart: bool | None = False,
    write: bool = True,
    show: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Finetuned:
    """Fine-tune a CLIP on pairs of image and caption.

    Parameters
    ----------
    weights : str
        A CLIP or a pair with it, see `medclipsam.weights.resolve_clip`.
    pairs : Listing
        What it learns from.
    folder : pathlib.Path
        The run's folder: checkpoints, and the result in `model`. A run that was interrupted goes on.
    options : FinetuneOptions
        How.
    validation : Listing, optional
        Held-out pairs; a share of `pairs` by default, drawn so that no caption and no image is in both.
    device : str
        Where to train.
    targets : TargetSet, optional
        Targets whose presence thresholds are calibrated; those of the package by default.
    restart : bool or None
        Whether to throw away what the folder holds of an earlier run; None throws away what is not of this one.
    write : bool
        Whether to write the result; of several processes one does.
    show, progress, cancelled
        See `medclipsam.finetune.trainer.train`.

    Returns
    -------
    Finetuned

    Raises
    ------
    MedClipSamError
        If the weights, the pairs or the folder are not as they must be, or it was cancelled.
    """
    base = resolve_clip(weights)
    encoder = load_encoder(base, device=device)
    if validation is None:
        pairs, validation = split_listing(pairs, options.validation, options.seed)
    reading: dict[str, Any] = {"workers": options.workers, "show": show, "cancelled": cancelled}
    learned = prepare(pairs, encoder, max_bad=options.max_bad, what="pairs for training", **reading)
    held = prepare(validation, encoder, max_bad=options.max_bad, what="pairs for validation", **reading)
    tuned = TunableClip(encoder, options)
    trained = train(
        tuned, learned, held, folder, options, restart=restart, show=show, progress=progress, cancelled=cancelled
    )
    images, _ = features_of(tuned, held)
    tuned.close()
    thresholds = calibrate(encoder, held, images, targets or TargetSet.load())
    card = _card(base, learned, held, options, trained, thresholds)
    if write:
        write_result(folder / RESULT, encoder, base, thresholds, card)
    return Finetuned(folder / RESULT, trained, card)


def measure(
    weights: str,
    pairs: Listing,
    *,
    gallery: int | None,
    runs: int,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    max_bad: float = 0.1,
    show: bool = False,
) -> tuple[Retrieval, PreparedPairs]:
    """Measure the retrieval of a CLIP on pairs; see `retrieval` for gallery, runs and seed.

    Raises
    ------
    MedClipSamError
        If the weights or the pairs are not as they must be.
    """
    encoder = load_encoder(resolve_clip(weights), device=device)
    prepared = prepare(pairs, encoder, max_bad=max_bad, workers=workers, show=show)
    features = features_of(TunableClip(encoder, FinetuneOptions()), prepared)
    return retrieval(*features, gallery=gallery, runs=runs, seed=seed), prepared


def _card(
    base: ResolvedWeights,
    learned: PreparedPairs,
    held: PreparedPairs,
    options: FinetuneOptions,
    trained: Trained,
    thresholds: dict[str, Any],
) -> dict[str, Any]:
    return {
        "what": f"fine-tuned from {base.name}",
        "version": __version__,
        "base": {"name": base.name, "sha256": base.sha256, "licence": base.metadata.get("licence")},
        "pairs": {
            "training": len(learned),
            "validation": len(held),
            "bad": len(learned.bad) + len(held.bad),
            "digest": learned.digest,
            "validation_digest": held.digest,
        },
        "options": options.to_dict(),
        "best_epoch": trained.best_epoch,
        "retrieval": {"before": trained.before.to_dict(), "after": trained.best.to_dict()},
        "presence_threshold": thresholds["presence_threshold"],
        "free_text_threshold": thresholds["free_text_threshold"],
        "history": trained.history,
        "seconds": round(trained.seconds),
    }
