"""The train task of the CLIP: pairs of the datastore or of a table, and new weights only where they are better."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam.base.errors import CancelledError, ImageError, InputError, OptionError
from medclipsam.base.statistics import Comparison, compare_pairs
from medclipsam.finetune.captions import tidy
from medclipsam.finetune.data import BadRow, Listing, Pair, Reports, read_csv, split_listing
from medclipsam.finetune.options import LOSS_CONSTANTS, SERVED_OPTIONS, FinetuneOptions
from medclipsam.finetune.store import ClipStore
from medclipsam.imaging import read_origin
from medclipsam.server.base.task import TrainTask
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.datastore import Datastore
from medclipsam.targets import TargetSet
from medclipsam.training.lock import TrainingLock
from medclipsam.training.split import patient_key
from medclipsam.weights import REGISTRY, MemoryNeed, memory_need, resolve_pair

logger = logging.getLogger(__name__)

NAME = "finetune_clip"
ACTIONS = ("fine-tune", "roll back")
# With fewer held-out pairs nothing is known well enough to change the weights.
LEAST_PAIRS = 20
# Held out for the decision, before and apart from the pairs that choose the best epoch.
DECISION_SHARE, DECISION_SEED = 0.2, 7
# AdamW's two moments, the gradient and the copies of the start and the best, beside the weights themselves.
_COPIES = 6
# Seconds between two lines of progress.
_EVERY = 5.0

_CSV = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\.(csv|tsv)")


@dataclass(frozen=True)
class FinetuneRequest:
    """A checked request.

    Attributes
    ----------
    options : FinetuneOptions
    action : {"fine-tune", "roll back"}
        Rolling back uses the weights before the present ones again.
    csv : str
        Name of a table in the workspace's folder `pairs`; empty takes the datastore's captions.
    device : str
        Where it trains; "auto" for the server's device.
    """

    options: FinetuneOptions
    action: str = ACTIONS[0]
    csv: str = ""
    device: str = "auto"


class FinetuneTrainer(TrainTask):
    """Fine-tune the CLIP of zero-shot segmentation on images with captions.

    Parameters
    ----------
    targets : TargetSet
        Known targets, whose presence thresholds are calibrated.
    store : ClipStore
        Where new weights go.
    weights : str
        The server's own pair of weights.
    lock : pathlib.Path
        Folder of the lock that lets one training run at a time.
    pairs : pathlib.Path
        Folder of tables that requests may name.
    studies : pathlib.Path or None
        The studies folder; None for a DICOMweb server.
    device : str or None
        Device of a request that names none.
    defaults : mapping of str to object, optional
        Options of a request that does not name them. Constants of a loss hold for that loss alone.
    """

    def __init__(
        self,
        targets: TargetSet,
        store: ClipStore,
        weights: str,
        *,
        lock: Path,
        pairs: Path,
        studies: Path | None,
        device: str | None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("Fine-tunes the CLIP on images with captions; better weights are used")
        self._targets = targets
        self._store = store
        self._weights = weights
        self._lock = lock
        self._pairs = pairs
        self._studies = studies
        self._device = device
        self._defaults = dict(defaults or {})

    def config(self) -> dict[str, Any]:
        """Return the options as the flat table that clients draw their forms from."""
        own = {"action": list(ACTIONS), "csv": "", "device": self._device or "auto"}
        form = FinetuneOptions.form(**self._defaults)
        return {**own, **{key: form[key] for key in SERVED_OPTIONS}}

    def stats(self) -> dict[str, Any]:
        """Return what is used, and what the trainings before came to."""
        current = self._store.current()
        return {"in_use": None if current is None else current.name, "history": self._store.events()[-20:]}

    def check(self, request: Mapping[str, Any]) -> FinetuneRequest:
        """Return the typed request.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        given = {
            key: request[key]
            for key in SERVED_OPTIONS
            if _text(request.get(key)) not in ("", "auto", str(self._defaults.get(key)))
        }
        options = FinetuneOptions.from_mapping({**self._defaults_for(given), **given})
        action = _text(request.get("action")) or ACTIONS[0]
        if action not in ACTIONS:
            raise OptionError("action", action, "one of " + ", ".join(ACTIONS))
        csv = _text(request.get("csv"))
        if csv and (not _CSV.fullmatch(csv) or ".." in csv):
            raise OptionError("csv", csv[:80], f"the name of a .csv or .tsv file in {self._pairs}")
        if csv and not (self._pairs / csv).is_file():
            raise InputError(f"There is no table {csv!r} in {self._pairs}.")
        return FinetuneRequest(options, action, csv, _text(request.get("device")) or "auto")

    def _defaults_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        loss = _text(given.get("loss")) or self._defaults.get("loss")
        other = loss != self._defaults.get("loss", FinetuneOptions().loss)
        return {key: value for key, value in self._defaults.items() if not (other and key in LOSS_CONSTANTS)}

    def need(self, request: Mapping[str, Any]) -> MemoryNeed | None:
        """Return what a fine-tuning takes; None where nothing is known of the weights."""
        known = memory_need(self._weights)
        return None if known is None else MemoryNeed(known.parameters * _COPIES, known.working, measured=False)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, job: Job | None = None) -> dict[str, Any]:
        """Fine-tune, and use the new weights if they beat the present ones on held-out pairs; `job` may stop it.

        Raises
        ------
        MedClipSamError
            If another training runs, there are too few pairs, or it was cancelled.
        """
        checked = self.check(request)
        with TrainingLock(self._lock, NAME) as lock:
            if checked.action == "roll back":
                version = self._store.rollback()
                used = "The server's own weights are" if version is None else f"Fine-tuned weights {version:04d} are"
                lock.tell({"state": "done", "trainer": NAME})
                logger.info("%s used again", used)
                return {"in_use": version, "reason": f"{used} used again."}
            return self._finetune(checked, datastore, lock, job)

    def _finetune(
        self, checked: FinetuneRequest, datastore: Datastore, lock: TrainingLock, job: Job | None
    ) -> dict[str, Any]:
        from medclipsam.finetune.run import finetune, measure

        present = self._store.current()
        weights = str(present) if present is not None else _clip_of(self._weights)
        listing = self._listing(checked, datastore)
        logger.info("%d images have a caption, %d have none or cannot be used", len(listing.pairs), len(listing.bad))
        # An image without a caption is no bad row of the datastore, where most may have none.
        learned, held = split_listing(
            Listing(listing.pairs, listing.bad if checked.csv else []), DECISION_SHARE, DECISION_SEED
        )
        if len(held.pairs) < LEAST_PAIRS:
            raise InputError(
                f"{len(listing.pairs)} images have a caption, and {len(held.pairs)} of them would be held out; "
                f"{LEAST_PAIRS} held-out pairs or more are needed to tell which weights are better."
            )
        device = self._where(checked)
        told = 0.0

        def progress(share: float, text: str) -> None:
            nonlocal told
            if share >= 1 or time.monotonic() - told > _EVERY:
                told = time.monotonic()
                lock.tell({"state": "training", "trainer": NAME, "fraction": round(share, 4), "message": text})
                logger.info("%d %%: %s", round(100 * share), text)

        work = self._store.work_folder()
        try:
            done = finetune(
                weights,
                learned,
                work,
                checked.options,
                device=device,
                targets=self._targets,
                # what another fine-tuning has left is nobody's: one runs at a time
                restart=None,
                progress=progress,
                cancelled=job.stopped if job else None,
            )
        except CancelledError:
            logger.info("Cancelled; a request with the same options goes on")
            raise
        logger.info("Comparing with the weights in use")
        common: dict[str, Any] = {"gallery": checked.options.gallery, "runs": 5, "device": device}
        before, _ = measure(weights, held, **common)
        after, pairs = measure(str(done.folder), held, **common)
        units = [("held-out pairs", pair.name) for pair in pairs.pairs]
        verdict = compare_pairs(before.hits.tolist(), after.hits.tolist(), units)
        better = verdict.low > 0
        reason = _sentence(verdict, better=better)
        about = {
            "reason": reason,
            "from": weights if present is None else present.name,
            "before": before.to_dict(),
            "after": after.to_dict(),
            "difference": [verdict.difference, verdict.low, verdict.high],
            "options": checked.options.to_dict(),
            "pairs": done.card["pairs"],
        }
        version = None
        if better:
            version = self._store.publish(done.folder, about)
        else:
            self._store.refuse(about)
        shutil.rmtree(work, ignore_errors=True)
        lock.tell({"state": "done", "trainer": NAME, "message": reason})
        logger.info("%s", reason)
        return {"version": version, "used": better, "reason": reason, "best_metric": after.score}

    def _listing(self, checked: FinetuneRequest, datastore: Datastore) -> Listing:
        if checked.csv:
            folders = [self._pairs, *([self._studies] if self._studies else [])]
            return read_csv(self._pairs / checked.csv, also=folders[1:], within=folders)
        return datastore_pairs(datastore, self._studies)

    def _where(self, checked: FinetuneRequest) -> str:
        import torch

        asked = self._device if checked.device == "auto" else checked.device
        return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def datastore_pairs(datastore: Datastore, studies: Path | None) -> Listing:
    """Return the images of a datastore that have a text.

    The text is the key `caption` of what is known of the image; else that of `Reports.of`, descriptions included; else,
    from a DICOMweb server, the study's description.

    Parameters
    ----------
    datastore : Datastore
        MONAI Label's.
    studies : pathlib.Path or None
        The studies folder, where structured reports are looked for.
    """
    found = Listing()
    reports = Reports(studies) if studies is not None else None
    for image in datastore.list_images():
        info = datastore.get_image_info(image) or {}
        text = tidy(str(info.get("caption") or ""))
        path = Path(datastore.get_image_uri(image)) if text or reports is not None else None
        if not text and reports is not None and path is not None:
            text = reports.of(path, descriptions=True) or ""
        if not text:
            text = tidy(str(info.get("StudyDescription") or ""))
        if not text:
            found.bad.append(BadRow(image, "it has no caption"))
            continue
        path = path or Path(datastore.get_image_uri(image))
        try:
            patient, study, modality = read_origin(path)
        except ImageError:
            found.bad.append(BadRow(image, "its patient cannot be read"))
            continue
        group = patient_key(image, patient=patient, study=study)
        found.pairs.append(Pair(image, path, text, modality=modality, group=group))
    return found


def _clip_of(weights: str) -> str:
    """Return the CLIP of a pair as `resolve` takes it."""
    clip, _ = resolve_pair(weights)
    return clip.name if clip.name in REGISTRY else str(clip.path)


def _sentence(verdict: Comparison, *, better: bool) -> str:
    return (
        f"Retrieval {verdict.mean_b:.3f} against {verdict.mean_a:.3f} of the weights in use, on {verdict.n} held-out "
        f"pairs: a difference of {verdict.difference:+.3f} (95 % interval {verdict.low:+.3f} to {verdict.high:+.3f}), "
        f"so the {'new weights are used' if better else 'weights in use stay'}."
    )


def _text(value: Any) -> str:
    first = next(iter(value), None) if isinstance(value, (list, tuple)) else value
    return "" if first is None else str(first).strip()
