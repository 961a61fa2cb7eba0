"""Label sets of NIfTI files: plain folders, nnU-Net v2 data sets and BIDS derivatives."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medclipsam import __version__
from medclipsam.base.errors import InputError
from medclipsam.exchange.cases import PROVENANCE, Case, Incoming
from medclipsam.imaging import MedicalImage, read_mask
from medclipsam.imaging.label_map import LabelMap, Overlaps
from medclipsam.imaging.write import write_image, write_mask

_GENERATED = {"Name": "MedCLIP-SAM for MONAI Label", "Version": __version__}
# Subfolder for images and labels of training and test cases in nnU-Net's layout.
_NNUNET = {False: ("imagesTr", "labelsTr"), True: ("imagesTs", "labelsTs")}
_COLOURS = ("R", "G", "B")
_FLAT = "A label of this format has one value for each voxel"


class NiftiSet:
    """`images/`, `labels/` and `labels.json`, which names the values."""

    def __init__(self, root: Path, classes: Mapping[str, int], overlaps: Overlaps = "refuse") -> None:
        self.root = root
        self.classes = dict(classes)
        self._overlaps = overlaps

    def add(self, case: Case) -> None:
        """Write one case.

        Raises
        ------
        InputError
            If segments overlap, and that is refused.
        """
        case.label.check_flat(_FLAT, self._overlaps)
        for folder in ("images", "labels"):
            (self.root / folder).mkdir(exist_ok=True)
        write_image(case.image, self.root / "images" / f"{case.name}.nii.gz")
        case.label.write(self.root / "labels" / f"{case.name}.nii.gz", overlaps="smaller-on-top")

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what is said of the whole set, given what is known of each case."""
        _write_json(self.root / "labels.json", self.classes)
        write_splits(self.root / "splits.json", cases)


class NnunetSet:
    """A data set of nnU-Net v2: `imagesTr`, `labelsTr`, for tests `imagesTs`, `labelsTs`, and `dataset.json`."""

    def __init__(self, root: Path, classes: Mapping[str, int], overlaps: Overlaps = "refuse") -> None:
        self.root = root
        self.classes = dict(classes)
        self._overlaps = overlaps
        self._channels: tuple[str, ...] = ()

    def add(self, case: Case) -> None:
        """Write one case.

        Raises
        ------
        InputError
            If it has other channels than those before, or segments overlap, and that is refused.
        """
        image = case.image
        case.label.check_flat(_FLAT, self._overlaps)
        channels = _COLOURS if image.is_colour else (image.modality or "image",)
        if self._channels and self._channels != channels:
            raise InputError(
                f"{case.name} is {'/'.join(channels)} and other images are {'/'.join(self._channels)}; an nnU-Net data "
                "set has one kind of image. Name it with --modality."
            )
        self._channels = channels
        images, labels = _NNUNET[case.test]
        for folder in (images, labels):
            (self.root / folder).mkdir(exist_ok=True)
        for channel in range(len(channels)):
            path = self.root / images / f"{case.name}_{channel:04d}.nii.gz"
            write_image(image, path, channel=channel if image.is_colour else None)
        case.label.write(self.root / labels / f"{case.name}.nii.gz", overlaps="smaller-on-top")

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write `dataset.json`, and `splits_final.json` with the folds by patient."""
        training = {name: case for name, case in cases.items() if not case["test"]}
        if not training:
            raise InputError("Every labelled patient is kept for tests; an nnU-Net data set needs training cases.")
        described = {
            "channel_names": {str(n): name for n, name in enumerate(self._channels)},
            "labels": {"background": 0, **self.classes},
            "numTraining": len(training),
            "file_ending": ".nii.gz",
            "name": self.root.name,
            "description": f"Labels exported by {_GENERATED['Name']} {__version__}",
        }
        _write_json(self.root / "dataset.json", described)
        folds = sorted({case["fold"] for case in training.values()})
        splits = [
            {
                "train": [name for name, case in training.items() if case["fold"] != fold],
                "val": [name for name, case in training.items() if case["fold"] == fold],
            }
            for fold in folds
        ]
        _write_json(self.root / "splits_final.json", splits)


class BidsSet:
    """A BIDS data set of the images, and their labels as discrete segmentations in `derivatives/medclipsam`.

    Where segments overlap, which a discrete segmentation cannot hold, each of them is a binary mask of its own.
    """

    def __init__(self, root: Path, classes: Mapping[str, int], suffix: str | None = None) -> None:
        self.root = root
        self.classes = dict(classes)
        self._suffix = suffix
        self._words = _words(classes)
        self._runs: dict[str, int] = {}
        self._stems: dict[str, str] = {}

    def add(self, case: Case) -> None:
        """Write one case."""
        subject = f"sub-{case.provenance['patient']}"
        run = self._runs[subject] = self._runs.get(subject, 0) + 1
        stem, suffix = f"{subject}_run-{run}", self._suffix or (case.image.modality or "image").lower()
        images, labels = (self.root / place / subject / "anat" for place in ("", "derivatives/medclipsam"))
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        write_image(case.image, images / f"{stem}_{suffix}.nii.gz")
        source = f"bids:raw:{subject}/anat/{stem}_{suffix}.nii.gz"
        about: dict[str, Any] = {"Manual": "model" not in case.provenance, "Sources": [source]}
        if case.label.overlaps:
            about["Type"] = "ROI"
            for name in case.classes:
                path = labels / f"{stem}_label-{self._words[name]}_mask.nii.gz"
                write_mask(case.label.mask(name), case.image, path, read_back=True)
                _write_json(path.with_name(path.name.replace(".nii.gz", ".json")), about)
        else:
            case.label.write(labels / f"{stem}_dseg.nii.gz")
            _write_json(labels / f"{stem}_dseg.json", about)
        self._stems[case.name] = f"{subject}/anat/{stem}"

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the descriptions of both data sets, the participants and the names of the values."""
        described = {"BIDSVersion": "1.10.0", "Name": self.root.name, "GeneratedBy": [_GENERATED]}
        _write_json(self.root / "dataset_description.json", {**described, "DatasetType": "raw"})
        derived = self.root / "derivatives" / "medclipsam"
        links = {"raw": "../.."}
        _write_json(
            derived / "dataset_description.json", {**described, "DatasetType": "derivative", "DatasetLinks": links}
        )
        _write_tsv(self.root / "participants.tsv", ("participant_id",), [(name,) for name in sorted(self._runs)])
        rows = [(value, name, self._words[name]) for name, value in self.classes.items()]
        _write_tsv(derived / "dseg.tsv", ("index", "name", "abbreviation"), rows)
        (self.root / "README").write_text("Images and labels exported by medclipsam.\n", encoding="utf-8")
        _write_json(derived / "cases.json", self._stems)
        write_splits(derived / "splits.json", cases)


def read_nifti(root: Path) -> list[Incoming]:
    """Return the cases of a plain set, see `NiftiSet`."""
    classes = _classes(root / "labels.json", read_json(root / "labels.json"))
    known = read_provenance(root)
    labels = sorted((root / "labels").glob("*.nii.gz")) if (root / "labels").is_dir() else []
    if not labels:
        raise InputError(f"{root} has no labels/*.nii.gz.")
    found = []
    for label in labels:
        name = label.name.removesuffix(".nii.gz")
        image = root / "images" / label.name
        found.append(_incoming(name, label, classes, known, image if image.exists() else None))
    return found


def read_nnunet(root: Path) -> list[Incoming]:
    """Return the cases of an nnU-Net v2 data set.

    Raises
    ------
    InputError
        If `dataset.json` is not one of nnU-Net v2, its labels are regions, or a label is missing.
    """
    described = read_json(root / "dataset.json")
    labels, ending = described.get("labels"), described.get("file_ending")
    if not isinstance(labels, dict) or not isinstance(ending, str) or not ending.startswith("."):
        raise InputError(f"{root / 'dataset.json'} has no labels or no file_ending; it is not one of nnU-Net v2.")
    if any(isinstance(value, list) for value in labels.values()):
        raise InputError(f"{root / 'dataset.json'} has labels that are regions (lists); allowed: one value a name.")
    classes = _classes(root / "dataset.json", {name: value for name, value in labels.items() if value != 0})
    channels = described.get("channel_names") or described.get("modality") or {"0": ""}
    known, found = read_provenance(root), []
    for images, folder in _NNUNET.values():
        for label in sorted((root / folder).glob(f"*{ending}")) if (root / folder).is_dir() else ():
            name = label.name.removesuffix(ending)
            image = root / images / f"{name}_0000{ending}"
            # of several channels none is the image
            usable = image.exists() and len(channels) == 1
            found.append(_incoming(name, label, classes, known, image if usable else None))
    if not found:
        raise InputError(f"{root} has no labelsTr/*{ending}.")
    return found


def read_bids(root: Path) -> list[Incoming]:
    """Return the cases of BIDS segmentations in `derivatives/*/sub-*/anat/`.

    They are `*_dseg.nii.gz`, or of segments that overlap `*_label-<name or abbreviation>_mask.nii.gz`, one for each.
    """
    found = []
    for derived in sorted((root / "derivatives").glob("*")) if (root / "derivatives").is_dir() else ():
        segmentations = sorted(derived.rglob("*_dseg.nii.gz"))
        masks: dict[str, dict[str, Path]] = defaultdict(dict)
        for path in sorted(derived.rglob("*_label-*_mask.nii.gz")):
            stem, _, word = str(path.relative_to(derived)).removesuffix("_mask.nii.gz").rpartition("_label-")
            masks[stem][word] = path
        if not segmentations and not masks:
            continue
        classes = _classes(derived / "dseg.tsv", _read_tsv(derived / "dseg.tsv"))
        stems = read_json(derived / "cases.json") if (derived / "cases.json").exists() else {}
        names = {stem: name for name, stem in stems.items()}
        known = read_provenance(root)
        words = _read_tsv(derived / "dseg.tsv", "abbreviation")
        files: dict[str, Path | dict[str, Path]] = {}
        for stem, of_case in masks.items():
            if strange := sorted(of_case.keys() - words.keys()):
                raise InputError(
                    f"{of_case[strange[0]]} is of {strange[0]!r}, which {derived / 'dseg.tsv'} does not name."
                )
            files[stem] = {words[word]: path for word, path in of_case.items()}
        for path in segmentations:
            stem = str(path.relative_to(derived)).removesuffix("_dseg.nii.gz")
            if stem in files:
                raise InputError(f"{path} and the masks beside it are both labels of {Path(stem).name}; keep one.")
            files[stem] = path
        for stem, label in sorted(files.items()):
            images = list((root / stem).parent.glob(f"{Path(stem).name}_*.nii.gz"))
            name = str(names.get(stem, Path(stem).name))
            found.append(_incoming(name, label, classes, known, images[0] if len(images) == 1 else None))
    if not found:
        raise InputError(f"{root} has no derivatives/*/sub-*/anat/*_dseg.nii.gz, and no *_label-*_mask.nii.gz.")
    return found


def _incoming(
    name: str,
    label: Path | dict[str, Path],
    classes: Mapping[str, int],
    known: Mapping[str, Mapping[str, Any]],
    image: Path | None,
) -> Incoming:
    provenance = known.get(name, {})
    own = provenance.get("classes")
    of_case = {each: classes[each] for each in own if each in classes} if isinstance(own, list) else dict(classes)
    if isinstance(label, dict):
        of_case |= {each: classes[each] for each in label}
    return Incoming(name, str(provenance.get("image") or name), partial(_read_label, label, of_case), image, provenance)


def _read_label(label: Path | dict[str, Path], classes: dict[str, int], image: MedicalImage) -> LabelMap:
    if isinstance(label, Path):
        return LabelMap(read_mask(label, image), image, classes)
    return LabelMap.from_masks({name: read_mask(path, image) > 0 for name, path in label.items()}, image, classes)


def write_splits(path: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write which cases are for training and for tests, and the fold of each."""
    test = [name for name, case in cases.items() if case["test"]]
    folds = {name: case["fold"] for name, case in cases.items() if not case["test"]}
    _write_json(path, {"train": list(folds), "test": test, "folds": folds})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file of a set.

    Raises
    ------
    InputError
        If it is not there, or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {path.name} in {path.parent}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold an object.")
    return content


def read_provenance(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return what a set says of its cases; nothing where it was written by another program."""
    if not (root / PROVENANCE).exists():
        return {}
    cases = read_json(root / PROVENANCE).get("cases")
    if not isinstance(cases, dict):
        return {}
    return {str(name): case for name, case in cases.items() if isinstance(case, dict)}


def _classes(path: Path, names: Mapping[str, Any]) -> dict[str, int]:
    """Return the values of names, checked."""
    found: dict[str, int] = {}
    for name, value in names.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 255:
            raise InputError(f"{path} gives {name!r} the value {value!r}; allowed: whole numbers from 1 to 255.")
        if value in found.values():
            raise InputError(f"{path} gives {name!r} the value {value}, which another name has.")
        found[str(name)] = value
    if not found:
        raise InputError(f"{path} names no labels.")
    return found


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([columns, *rows])
    path.write_text(buffer.getvalue(), encoding="utf-8")


def _words(names: Iterable[str]) -> dict[str, str]:
    """Return for each name a word of letters and digits, as BIDS wants in names of files; no two have one."""
    found: dict[str, str] = {}
    for name in names:
        plain = word = re.sub(r"[^A-Za-z0-9]", "", name) or "segment"
        number = 1
        while word.lower() in {each.lower() for each in found.values()}:
            number += 1
            word = f"{plain}{number}"
        found[name] = word
    return found


def _read_tsv(path: Path, column: str | None = None) -> dict[str, Any]:
    """Return the values of the names in a lookup table; given a column, the names of its words, and of themselves."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if int(row["index"])]
        if column is None:
            return {row["name"]: int(row["index"]) for row in rows}
        return {
            **{row["name"]: row["name"] for row in rows},
            **{row[column]: row["name"] for row in rows if row.get(column)},
        }
    except FileNotFoundError:
        raise InputError(f"There is no {path.name} in {path.parent}, which names the values.") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: its columns must be index and name ({error!r}).") from error
