"""The final labels of a studies folder, written as a label set."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import CancelledError, InputError, StorageError
from medclipsam.base.files import file_sha256
from medclipsam.exchange.cases import PROVENANCE, Case, case_name, patient_hash
from medclipsam.exchange.coco import CocoSet
from medclipsam.exchange.dicom_sets import DicomSet
from medclipsam.exchange.nifti_sets import BidsSet, NiftiSet, NnunetSet
from medclipsam.exchange.options import ExportOptions, Format
from medclipsam.imaging import read_image
from medclipsam.imaging.label_map import ValueNames, is_seg_nrrd, read_kept_label, read_segment_names
from medclipsam.imaging.write import DISK_FULL
from medclipsam.targets import TargetSet, label_table
from medclipsam.training.collect import read_studies
from medclipsam.training.selection import Candidate
from medclipsam.training.split import is_validation


@dataclass
class Exported:
    """What was written.

    Attributes
    ----------
    folder : Path
        The set's folder.
    cases : dict of str to dict
        What is known of each case, by its name; `image` is the id of its image.
    left_out : dict of str to str
        Images whose labels could not be written, by id, and why.
    classes : dict of str to int
        Name to value of the structures.
    """

    folder: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)


class _Set(Protocol):
    def add(self, case: Case) -> None: ...

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None: ...


def export_labels(
    studies: Path,
    out: Path,
    kind: Format,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Exported:
    """Write the final labels of a studies folder, and their images, as a label set.

    Parameters
    ----------
    studies : Path
        Folder of images with labels, as the server keeps it.
    out : Path
        The set's folder, which must not be there or be empty; nnU-Net's data set is a folder in it. It appears when it
        is complete.
    kind : {"nnunet", "coco", "nifti", "bids", "seg", "rtstruct"}
    options : ExportOptions, optional
    progress : callable, optional
        Called with the images done and in all.
    cancelled : callable, optional
        Asked before each image; True stops the work, and nothing is left.

    Returns
    -------
    Exported

    Raises
    ------
    InputError
        If there is no label, none can be written in the format, or the folder is not empty.
    StorageError
        If the disk is full.
    CancelledError
        If the caller asked to stop.
    """
    options = options or ExportOptions()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty; name a new folder.")
    if not out.parent.is_dir():
        raise InputError(f"The folder {out.parent} of {out.name!r} does not exist.")
    candidates = [each for each in read_studies(studies) if "final" in each.labels]
    if options.modality:
        candidates = [each for each in candidates if each.modality == options.modality]
    if not candidates:
        which = f" of the modality {options.modality}" if options.modality else ""
        raise InputError(f"{studies} has no final labels{which}.")
    candidates.sort(key=lambda each: each.image_id)
    names = {each.image_id: _names(each) for each in candidates}
    classes = _classes(names, consecutive=kind in ("nnunet", "coco"))
    folds = _folds(candidates, options)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            made = Exported(out, classes=classes)
            place = Path(temporary) / "set"
            place.mkdir()
            root = place / f"Dataset{options.dataset_id:03d}_{options.name}" if kind == "nnunet" else place
            root.mkdir(exist_ok=True)
            writer = _writer(kind, root, classes, options)
            for number, candidate in enumerate(candidates):
                if cancelled is not None and cancelled():
                    raise CancelledError("The export was cancelled; nothing was written.")
                if progress is not None:
                    progress(number, len(candidates))
                name = case_name(candidate.image_id, made.cases)
                try:
                    case = _case(name, candidate, names[candidate.image_id], classes, folds)
                    writer.add(case)
                except InputError as error:
                    made.left_out[candidate.image_id] = str(error)
                    _remove(root, name)
                    continue
                test, fold = folds[candidate.patient]
                made.cases[name] = {**case.provenance, "test": test, "fold": fold}
            if not made.cases:
                raise InputError(f"No label can be written as {kind}. {next(iter(made.left_out.values()))}")
            writer.finish(made.cases)
            provenance = {"format": kind, "version": __version__, "options": options.to_dict(), "cases": made.cases}
            (root / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
            if out.exists():
                out.rmdir()
            place.rename(out)
    except OSError as error:
        sentence = f"{out} cannot be written: {error.strerror or error}."
        raise StorageError(sentence, full=error.errno in DISK_FULL) from error
    if progress is not None:
        progress(len(candidates), len(candidates))
    return made


def _writer(kind: Format, root: Path, classes: Mapping[str, int], options: ExportOptions) -> _Set:
    if kind == "nnunet":
        return NnunetSet(root, classes, options.overlaps)
    if kind == "coco":
        return CocoSet(root, classes, options.coco_masks)
    if kind == "bids":
        return BidsSet(root, classes, options.bids_suffix)
    if kind in ("seg", "rtstruct"):
        return DicomSet(root, "seg" if kind == "seg" else "rtstruct", options.seg_type, options.reports)
    return NiftiSet(root, classes, options.overlaps)


def _names(candidate: Candidate) -> dict[int, str]:
    """Return the names of the values of an image's label; where none were saved with it, those of the known targets."""
    label = candidate.labels["final"]
    if names := ValueNames.from_monailabel(label.info).by_value():
        return names
    if is_seg_nrrd(label.path) and (own := read_segment_names(label.path)):
        return {value: name for name, value in own.items()}
    table = {value: name for name, value in label_table(TargetSet.load()).items()}
    held = np.unique(read_image(label.path).voxels()).tolist()
    return {int(value): table[value] for value in held if value in table}


def _classes(names: Mapping[str, Mapping[int, str]], *, consecutive: bool) -> dict[str, int]:
    """Return one value for each name in all labels: its own where no other name has it, else a free one."""
    found: dict[str, int] = {}
    for of_image in names.values():
        for value, name in sorted(of_image.items()):
            if name not in found:
                taken = set(found.values())
                found[name] = value if value not in taken else min(set(range(1, 256)) - taken, default=0)
                if not found[name]:
                    raise InputError("The labels have more than 255 names; export fewer images.")
    if not consecutive:
        return found
    return {name: number for number, name in enumerate(sorted(found, key=lambda each: found[each]), start=1)}


def _folds(candidates: list[Candidate], options: ExportOptions) -> dict[str, tuple[bool, int]]:
    """Return for each patient whether it is kept for tests, and its fold."""
    patients = sorted({each.patient for each in candidates})
    drawn = sorted(patients, key=lambda key: hashlib.sha256(f"{options.seed}\n{key}\nfold".encode()).digest())
    training = [key for key in drawn if not is_validation(key, options.seed, options.test_share)]
    folds = {key: number % options.folds for number, key in enumerate(training)}
    return {key: (key not in folds, folds.get(key, 0)) for key in patients}


def _case(
    name: str,
    candidate: Candidate,
    names: Mapping[int, str],
    classes: Mapping[str, int],
    folds: Mapping[str, tuple[bool, int]],
) -> Case:
    label = candidate.labels["final"]
    image = read_image(candidate.image, modality=candidate.modality)
    read = read_kept_label(label.path, image, label.info)
    unnamed = sorted(read.present - names.keys())
    if unnamed:
        raise InputError(
            f"The label of {candidate.image_id} holds {', '.join(map(str, unnamed))}, which nothing names."
        )
    own = {each: classes[each] for value, each in names.items() if _was_asked(label.info) or value in read.present}
    numbered = read.renumbered({value: classes[each] for value, each in names.items()}, own, own)
    provenance: dict[str, Any] = {
        "image": candidate.image_id,
        "patient": patient_hash(candidate.patient),
        "modality": candidate.modality,
        "classes": list(own),
        "label_sha256": file_sha256(label.path),
    }
    for key in ("saved_by", "model", "version"):
        if isinstance(label.info.get(key), str):
            provenance[key] = label.info[key]
    if isinstance(label.info.get("imported"), dict):
        provenance["imported"] = label.info["imported"]
    test, fold = folds[candidate.patient]
    return Case(name, numbered, own, test, fold, provenance)


def _was_asked(info: Mapping[str, Any]) -> bool:
    """Whether a label's info names its values, so that what it does not hold was looked for."""
    return bool(ValueNames.from_monailabel(info).pairs)


def _remove(root: Path, name: str) -> None:
    """Remove what was written of a case that could not be completed."""
    for path in sorted(root.rglob(f"{name}*"), reverse=True):
        if path.name in (name, *(f"{name}{suffix}" for suffix in (".nii.gz", ".dcm", ".png"))) or path.name.startswith(
            f"{name}_"
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
