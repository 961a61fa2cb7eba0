"""What a cohort found as what a project's rounds choose by, and its masks as pre-annotations."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.active import LEDGER_FILE
from medclipsam.base.errors import InputError
from medclipsam.base.files import atomic_write
from medclipsam.base.formats import STUDY_LABEL_SUFFIXES, suffix_of
from medclipsam.cohort.store import Run
from medclipsam.cohort.table import batches
from medclipsam.studies.find import LABELS

# Tag of labels that a model made.
_ORIGINAL = "original"
_COLUMNS = (
    *("image", "status", "finding", "found", "presence", "threshold", "uncertainty", "patient", "study_uid", "mask"),
    *("embedding", "encoder", "image_uncertainty", "planes_to_look_at"),
)


@dataclass(frozen=True)
class Fed:
    """What a ledger was told.

    Attributes
    ----------
    images, presence, scores, embeddings, masks : int
        How many images, of how many of them each was noted, and how many pre-annotations were put with the studies.
    """

    images: int
    presence: int
    scores: int
    embeddings: int
    masks: int

    def __str__(self) -> str:
        return (
            f"{self.images} images are in the ledger: presence of {self.presence}, uncertainty of {self.scores}, "
            f"embeddings of {self.embeddings}; {self.masks} masks are pre-annotations now."
        )


def feed_rounds(run: Run, workspace: Path) -> Fed:
    """Put what a run found into the ledger of a project, and its masks into the studies folder as pre-annotations.

    Masks become labels of the tag `original` where an image has none. Annotators of a PACS see what the run stored
    there as DICOM SEG.

    Parameters
    ----------
    run : Run
    workspace : Path
        Of the project's server, which may be running.

    Raises
    ------
    InputError
        If the network that made the masks is not the one that the project has published: scores of two networks
        cannot be compared.
    """
    from medclipsam.active.ledger import Ledger, Score
    from medclipsam.training.split import patient_key
    from medclipsam.training.store import NetworkStore

    method = run.request["method"]
    networks = NetworkStore(workspace / "networks")
    if method["kind"] == "network":
        published = networks.current(method["name"]) if method["version"] is not None else None
        if published is None or published.identity != method["identity"]:
            raise InputError(
                f"The network of the run ({method['identity'][:12]}) is not the one that is published in {workspace}; "
                "the rounds compare scores of the published network only."
            )
    workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    split = networks.split()
    ledger = Ledger(workspace / LEDGER_FILE)
    try:
        known = ledger.images()
        images = {row["image"]: (row["subject"], row["validation"]) for row in known}
        finished = {row["image"] for row in known if row["finished"]}
        for _, rows in _by_image(run):
            for image, own in rows.items():
                key = patient_key(image, patient=own[0]["patient"] or None, study=own[0]["study_uid"] or None)
                images.setdefault(image, (key, split.holds(key)))
        ledger.sync_images(images, finished)
        counts = dict.fromkeys(("images", "presence", "scores", "embeddings", "masks"), 0)
        for _, rows in _by_image(run):
            margins, scores, vectors = {}, {}, {}
            encoder = ""
            for image, own in rows.items():
                asked = [
                    row["presence"] - row["threshold"]
                    for row in own
                    if row["presence"] is not None and row["threshold"] is not None
                ]
                if asked:
                    margins[image] = max(asked)
                if own[0]["image_uncertainty"] is not None:
                    classes = {row["finding"]: row["uncertainty"] for row in own}
                    there = tuple(row["finding"] for row in own if row["found"])
                    planes = tuple(own[0]["planes_to_look_at"] or ())
                    scores[image] = Score(own[0]["image_uncertainty"], classes, None, planes, there)
                if own[0]["embedding"] is not None:
                    vectors[image] = np.frombuffer(own[0]["embedding"], np.float16)
                    encoder = own[0]["encoder"]
                counts["masks"] += _put_mask(run, image, own[0]["mask"])
            ledger.set_presence(margins)
            if scores:
                ledger.set_scores(method["identity"], scores)
            if vectors:
                ledger.set_embeddings(encoder, vectors)
            for name, found in (("images", rows), ("presence", margins), ("scores", scores), ("embeddings", vectors)):
                counts[name] += len(found)
        return Fed(**counts)
    finally:
        ledger.close()


def _by_image(run: Run) -> Iterator[tuple[Path, dict[str, list[dict[str, Any]]]]]:
    """Yield the findings of each finished block by image, without studies that were set aside."""
    for part in run.parts():
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for batch in batches(iter([part]), _COLUMNS):
            for row in batch.to_pylist():
                if row["status"] == "done":
                    rows[row["image"]].append(row)
        yield part, rows


def _put_mask(run: Run, image: str, mask: str | None) -> bool:
    """Put a mask with the studies as a pre-annotation where the image has none; returns whether it did."""
    if not mask or run.source["kind"] != "folder":
        return False
    folder = Path(run.source["path"]) / LABELS / _ORIGINAL
    folder.mkdir(parents=True, exist_ok=True)
    suffix = suffix_of(mask, STUDY_LABEL_SUFFIXES)
    path = folder / f"{image}{suffix}"
    if any((folder / f"{image}{suffix}").exists() for suffix in (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".png")):
        return False
    with atomic_write(path, prefix=".medclipsam-part-", suffix=suffix) as temporary:
        shutil.copyfile(run.folder / mask, temporary)
        os.utime(temporary)
    return True
