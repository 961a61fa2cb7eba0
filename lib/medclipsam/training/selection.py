"""Which label of each image is trained on, with what weight, and what is left out for which reason.

A corrected label (tag `final`) goes before a pseudo-label (`original`), and only one of the two is used. Pseudo-labels
are used where the evidence that was saved with them is good enough, and never on a patient kept for validation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.base.files import file_sha256
from medclipsam.base.progress import ProgressBar
from medclipsam.imaging import read_image
from medclipsam.imaging.label_map import ValueNames
from medclipsam.targets import FINDING_LABELS, TargetSet, label_table, normalise
from medclipsam.training.examples import Example, read_example_label
from medclipsam.training.split import Split

Kind = Literal["final", "original"]
KINDS: tuple[Kind, Kind] = ("final", "original")
# Radiographs are one kind of image, whichever machine took them.
_KINDS_OF_IMAGE = {"CR": "DX"}
# How many images a sentence names.
_NAMED = 5


@dataclass(frozen=True)
class Label:
    """A label file and what was saved with it.

    Attributes
    ----------
    path : Path
        The label map.
    info : dict
        May name the label's values (`label_names`, `label_info`), and holds the evidence of a pseudo-label (`params`).
    """

    path: Path
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An image that has a label.

    Attributes
    ----------
    image_id : str
    image : Path
        File or series folder.
    patient : str
        See `medclipsam.training.split.patient_key`.
    labels : dict of str to Label
        By tag.
    modality : str or None
        What the file says.
    """

    image_id: str
    image: Path
    patient: str
    labels: Mapping[str, Label]
    modality: str | None = None


@dataclass(frozen=True)
class Criteria:
    """What is selected.

    Attributes
    ----------
    labels : tuple of str
        Names of the labels to train; empty for all that the label files name.
    modality : str or None
        The kind of image; None for the only one there is.
    final_weight, original_weight : float
        How often an image with a label of each kind is drawn, relative to the others.
    min_presence : float or None
        Least presence score of a pseudo-label; None for the threshold that it was made with.
    min_sam_score : float
        Least score that SAM gave a pseudo-label.
    min_agreement : float
        Least Dice between a pseudo-label and the mask of the current network, where there is one.
    absent_below : float
        A pseudo-label whose presence score is below this is used as the label that the target is absent; 0 for none.
    """

    labels: tuple[str, ...] = ()
    modality: str | None = None
    final_weight: float = 3.0
    original_weight: float = 1.0
    min_presence: float | None = None
    min_sam_score: float = 0.5
    min_agreement: float = 0.5
    absent_below: float = 0.0


@dataclass(frozen=True)
class LeftOut:
    """A label that is not used, and why."""

    image: str
    kind: str
    reason: str
    sentence: str


@dataclass(frozen=True)
class Selection:
    """What to train on.

    Attributes
    ----------
    classes : dict of str to int
        Label name to class index, from 1.
    labels : dict of str to int
        Label name to id in masks.
    modality : str or None
        The kind of image.
    training, validation : list of Example
        Images to train on; images with a final label to judge with.
    left_out : list of LeftOut
    digest : str
        SHA-256 of which images and labels these are.
    zero_shot : list of Example
        The zero-shot masks of validation images, as far as there are any.
    patients : dict of str to str
        Image to patient, of the validation images.
    """

    classes: dict[str, int]
    labels: dict[str, int]
    modality: str | None
    training: list[Example]
    validation: list[Example]
    left_out: list[LeftOut]
    digest: str
    zero_shot: list[Example] = field(default_factory=list)
    patients: dict[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Return how many there are of each kind, JSON-able."""
        kinds = Counter(example.kind for example in self.training)
        return {
            "hash": self.digest,
            "training": {kind: kinds.get(kind, 0) for kind in KINDS},
            "validation": len(self.validation),
            "left_out": dict(Counter(each.reason for each in self.left_out)),
        }


# Returns how well a pseudo-label agrees with the current network, Dice in [0, 1].
Agreement = Callable[[Example, Mapping[str, int]], float]


@dataclass
class _Chosen:
    """One image on its way."""

    candidate: Candidate
    kind: Kind
    label: Label
    modality: str | None = None
    names: dict[str, int] | None = None
    values: frozenset[int] = frozenset()


class Vocabulary:
    """What labels are called on one kind of image: a known target by its own name, all else by the words used."""

    def __init__(self, targets: TargetSet, modality: str | None) -> None:
        self.table = label_table(targets)
        self._targets = targets
        self._modality = modality

    def name(self, text: str) -> str:
        """Return what a label is called here."""
        known = self._targets.match(text, self._modality)
        return known.name if known is not None else " ".join(normalise(text).split())

    def read(self, info: Mapping[str, Any]) -> dict[str, int] | None:
        """Return the values that a label's description names, name to value; None where it names none.

        Raises
        ------
        InputError
            If it gives one name two values, or one value two names.
        """
        found: dict[str, int] = {}
        for text, value in ValueNames.from_monailabel(info).pairs:
            name = self.name(text)
            if found.setdefault(name, value) != value:
                raise InputError(f"Its description calls both {found[name]} and {value} {name!r}.")
            other = next((each for each, its in found.items() if its == value and each != name), None)
            if other is not None:
                raise InputError(f"Its description calls {value} both {other!r} and {name!r}.")
        return found or None


def select(
    candidates: Iterable[Candidate],
    criteria: Criteria,
    targets: TargetSet,
    split: Split,
    *,
    agreement: Agreement | None = None,
    only_validation: bool = False,
    show: bool = False,
) -> Selection:
    """Choose what to train on, after looking at every label file.

    Parameters
    ----------
    candidates : iterable of Candidate
        All images with a label.
    criteria : Criteria
        What is wanted.
    targets : TargetSet
        Known targets, whose ids are those of label files that name none.
    split : Split
        Which patients are kept for validation.
    agreement : callable, optional
        Holds a pseudo-label against the current network.
    only_validation : bool
        Whether there need be nothing to train on.
    show : bool
        Whether to show progress.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        If there is nothing to train on; a label that is wanted is in no file; a file holds an id that nothing names;
        or the labels belong to several kinds of image and none is named.
    """
    left_out: list[LeftOut] = []
    chosen = _choose(candidates)
    if not chosen:
        raise InputError("There is nothing to train on: no image has a label (final, or original from a batch).")
    modality = _one_modality(chosen, criteria, targets, left_out)
    words = Vocabulary(targets, modality)
    _read_names(chosen, words, left_out)
    _check_unnamed(chosen, criteria, words, show)
    _read_values(chosen, modality, left_out, show)
    _check_ids(chosen, words)
    labels = _ids(chosen, _wanted(chosen, criteria, words), words)
    modality = modality or _only_kind(labels, targets)
    classes = {name: index for index, name in enumerate(labels, start=1)}
    training: list[Example] = []
    validation: list[Example] = []
    kept: list[Candidate] = []
    for each in ProgressBar(chosen, desc="labels", unit="image", show=show):
        example = _example(each, classes, words, criteria, modality, left_out)
        if example is None:
            continue
        if split.holds(each.candidate.patient):
            if each.kind == "final":
                validation.append(example)
                kept.append(each.candidate)
            else:
                _leave(left_out, each, "validation", "Its patient is kept for validation.")
        elif each.kind == "final" or _good_enough(each, example, classes, words, criteria, agreement, left_out):
            training.append(example)
    if not training and not only_validation:
        raise InputError("There is nothing to train on: " + _because(validation, left_out))
    return Selection(
        classes,
        labels,
        modality,
        training,
        validation,
        left_out,
        _digest(training, validation),
        _zero_shot(kept, classes, words, criteria, modality),
        {candidate.image_id: candidate.patient for candidate in kept},
    )


def image_kind(modality: str | None) -> str | None:
    """Return a DICOM modality as the kind of image that one network is trained for: CR and DX are one."""
    return _KINDS_OF_IMAGE.get(modality.upper(), modality.upper()) if modality else None


def _choose(candidates: Iterable[Candidate]) -> list[_Chosen]:
    chosen = []
    for candidate in sorted(candidates, key=lambda each: each.image_id):
        kind = next((kind for kind in KINDS if kind in candidate.labels), None)
        if kind is not None:
            chosen.append(_Chosen(candidate, kind, candidate.labels[kind]))
    return chosen


def _one_modality(chosen: list[_Chosen], criteria: Criteria, targets: TargetSet, left_out: list[LeftOut]) -> str | None:
    """Leave out the images of other kinds than the wanted one, and return that."""
    for each in chosen:
        each.modality = image_kind(each.candidate.modality) or _told_modality(each.label, targets)
    wanted = image_kind(criteria.modality)
    if wanted is None:
        relevant = [each for each in chosen if _may_hold(each.label, criteria.labels, targets)]
        kinds = Counter(each.modality for each in relevant if each.modality)
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
            raise InputError(
                f"The labels belong to images of several kinds: {listed}. A network is trained for one: name it with "
                "the option modality, and the labels with the option targets."
            )
        wanted = next(iter(kinds), None)
    for each in list(chosen):
        if each.modality not in (None, wanted):
            _leave(left_out, each, "modality", f"It is an image of the kind {each.modality}, not {wanted}.")
            chosen.remove(each)
    return wanted


def _told_modality(label: Label, targets: TargetSet) -> str | None:
    """Return the kind of image that a label was made on, from what came with it: its evidence, or its only targets."""
    params = label.info.get("params")
    image = params.get("image") if isinstance(params, Mapping) else None
    told = image.get("modality") if isinstance(image, Mapping) else None
    if isinstance(told, str) and told:
        return image_kind(told)
    return _only_kind((name for name, _ in ValueNames.from_monailabel(label.info).pairs), targets)


def _only_kind(names: Iterable[str], targets: TargetSet) -> str | None:
    """Return the kind of image that targets are known in, None where it is not one."""
    kinds: set[str | None] = set()
    for name in names:
        known = targets.match(name)
        kinds |= {image_kind(each) for each in known.modality} if known else {None}
    return kinds.pop() if len(kinds) == 1 else None


def _may_hold(label: Label, names: Sequence[str], targets: TargetSet) -> bool:
    """Return whether a label's description lets it hold one of the wanted labels."""
    words = Vocabulary(targets, None)
    given = {words.name(name) for name, _ in ValueNames.from_monailabel(label.info).pairs}
    return not names or not given or bool(given & {words.name(name) for name in names})


def _read_names(chosen: list[_Chosen], words: Vocabulary, left_out: list[LeftOut]) -> None:
    for each in list(chosen):
        try:
            each.names = words.read(each.label.info)
        except InputError as error:
            _leave(left_out, each, "contradictory", str(error))
            chosen.remove(each)


def _read_values(chosen: list[_Chosen], modality: str | None, left_out: list[LeftOut], show: bool) -> None:
    """Look at every label file; what cannot be used is left out."""
    for each in ProgressBar(list(chosen), desc="reading", unit="image", show=show):
        try:
            image = read_image(each.candidate.image, modality=each.candidate.modality or modality)
            each.values = read_example_label(each.label.path, image).present
        except MedClipSamError as error:
            _leave(left_out, each, "unreadable", str(error))
            chosen.remove(each)


def _check_unnamed(chosen: Sequence[_Chosen], criteria: Criteria, words: Vocabulary, show: bool) -> None:
    """Check the values of labels that nothing names, before the images are read."""
    unnamed = [each for each in chosen if each.names is None]
    for each in ProgressBar(unnamed, desc="reading labels", unit="file", show=show):
        try:
            # a label map is in the place of itself
            each.values = read_example_label(each.label.path, read_image(each.label.path)).present
        except MedClipSamError:
            continue  # reported with its image
        _check_ids([each], words)
    _wanted(chosen, criteria, words)


def _check_ids(chosen: Sequence[_Chosen], words: Vocabulary) -> None:
    unknown: dict[int, list[str]] = {}
    for each in chosen:
        for value in each.values - set(words.table.values()) - set((each.names or {}).values()):
            unknown.setdefault(value, []).append(f"{each.candidate.image_id} ({each.kind}, {each.label.path.name})")
    if unknown:
        value, images = sorted(unknown.items())[0]
        raise InputError(
            f"The labels of {_listed(images)} hold the value {value}, which neither the known targets nor what was "
            f"saved with the labels names. Name it with --label-map {value}=NAME, or save the labels again with "
            f'label_info, as in [{{"name": "cyst", "idx": {value}}}].'
        )


def _wanted(chosen: Sequence[_Chosen], criteria: Criteria, words: Vocabulary) -> list[str]:
    """Return the names of the labels to train; those that are not asked for by name in the order of their ids."""
    by_value = {value: name for name, value in words.table.items()}
    found: set[str] = set()
    for each in chosen:
        found |= set(each.names) if each.names is not None else {by_value[value] for value in each.values}
    if not criteria.labels:
        if not found:
            raise InputError("There is nothing to train on: no label file holds or names a label.")
        return sorted(found, key=lambda name: (words.table.get(name, 256), name))
    wanted = list(dict.fromkeys(map(words.name, criteria.labels)))
    for name in wanted:
        if name not in found:
            listed = ", ".join(sorted(found)) or "none"
            raise InputError(f"No label file holds or names {name!r}; labels found: {listed}.{_bare(chosen, name)}")
    return wanted


def _bare(chosen: Sequence[_Chosen], name: str) -> str:
    """Return how to name the values of labels that were saved without names, where there are such."""
    unnamed = [each for each in chosen if each.names is None and each.values]
    if not unnamed:
        return ""
    values = sorted({value for each in unnamed for value in each.values})
    files = _listed([each.label.path.name for each in unnamed])
    return (
        f" {files} hold the values {', '.join(map(str, values))} without names, which are read as the ids of known "
        f'targets; name them with --label-map, as in --label-map "{values[0]}={name}".'
    )


def _ids(chosen: Sequence[_Chosen], names: Sequence[str], words: Vocabulary) -> dict[str, int]:
    """Return the id of each label in the masks that the network will draw: a known target's own, else the files'."""
    taken = {name: words.table[name] for name in names if name in words.table}
    for name in names:
        if name in taken:
            continue
        used = Counter(each.names[name] for each in chosen if each.names and name in each.names)
        possible = (*(value for value, _ in used.most_common()), *FINDING_LABELS.values())
        free = [value for value in possible if value not in taken.values()]
        if not free:
            raise InputError(f"There is no id left for the label {name!r}; train fewer labels.")
        taken[name] = free[0]
    return {name: taken[name] for name in names}


def _example(
    each: _Chosen,
    classes: Mapping[str, int],
    words: Vocabulary,
    criteria: Criteria,
    modality: str | None,
    left_out: list[LeftOut],
) -> Example | None:
    """Return the example of an image, None where its label does not speak of all classes."""
    if each.names is None:
        named = words.table
    else:
        # what lies in the file under a known target's own id counts, named or not
        unnamed = each.values - set(each.names.values())
        named = {**{name: value for name, value in words.table.items() if value in unnamed}, **each.names}
    missing = [name for name in classes if name not in named]
    if missing:
        _leave(left_out, each, "incomplete", f"Its label does not speak of {', '.join(missing)}.")
        return None
    return Example(
        name=each.candidate.image_id,
        image=each.candidate.image,
        mask=each.label.path,
        kind=each.kind,
        modality=each.candidate.modality or modality,
        # what else the file holds is background
        values={**dict.fromkeys(each.values, 0), **{named[name]: index for name, index in classes.items()}},
        weight=criteria.final_weight if each.kind == "final" else criteria.original_weight,
    )


def _zero_shot(
    candidates: Iterable[Candidate],
    classes: Mapping[str, int],
    words: Vocabulary,
    criteria: Criteria,
    modality: str | None,
) -> list[Example]:
    """Return the zero-shot masks of images that have a final label too; those that cannot be used are passed over."""
    ignored: list[LeftOut] = []
    chosen = [_Chosen(each, "original", each.labels["original"]) for each in candidates if "original" in each.labels]
    _read_names(chosen, words, ignored)
    _read_values(chosen, modality, ignored, show=False)
    examples = [_example(each, classes, words, criteria, modality, ignored) for each in chosen]
    return [example for example in examples if example is not None]


def _good_enough(
    each: _Chosen,
    example: Example,
    classes: Mapping[str, int],
    words: Vocabulary,
    criteria: Criteria,
    agreement: Agreement | None,
    left_out: list[LeftOut],
) -> bool:
    """Return whether a pseudo-label is used."""
    params = each.label.info.get("params")
    evidence = params.get("targets") if isinstance(params, Mapping) else None
    by_name = {
        words.name(str(entry.get("name"))): entry
        for entry in (evidence if isinstance(evidence, list) else ())
        if isinstance(entry, Mapping)
    }
    absent = 0
    for name in classes:
        entry = by_name.get(name)
        if entry is None:
            _leave(left_out, each, "no evidence", f"Nothing was saved with it that says how sure {name} is.")
            return False
        presence, sam = (_number(entry.get(key)) for key in ("presence_score", "sam_score"))
        if presence is not None and presence < criteria.absent_below and not entry.get("found"):
            absent += 1
            continue
        least = criteria.min_presence
        if least is None:
            least = _number(entry.get("presence_threshold")) or 0.0
        if least > 0 and (presence is None or presence < least):
            _leave(left_out, each, "presence", f"{name}: presence {_text(presence)}, below {least:.3f}.")
            return False
        if not entry.get("found"):
            _leave(left_out, each, "presence", f"{name} was not found.")
            return False
        if criteria.min_sam_score > 0 and (sam is None or sam < criteria.min_sam_score):
            _leave(left_out, each, "sam_score", f"{name}: SAM's score {_text(sam)}, below {criteria.min_sam_score:g}.")
            return False
    if agreement is not None and criteria.min_agreement > 0 and absent < len(classes):
        dice = agreement(example, classes)
        if dice < criteria.min_agreement:
            sentence = f"Dice {dice:.3f} with the current network's mask, below {criteria.min_agreement:g}."
            _leave(left_out, each, "agreement", sentence)
            return False
    return True


def _digest(training: Sequence[Example], validation: Sequence[Example]) -> str:
    """Return the SHA-256 over the label files' content and the images' names and sizes, of each part."""
    total = hashlib.sha256()
    for part in (training, validation):
        for example in sorted(part, key=lambda each: each.name):
            values = sorted((example.values or {}).items())
            about = (example.name, _size(example.image), example.kind, example.weight, values)
            total.update(repr(about).encode())
            total.update(bytes.fromhex(file_sha256(example.mask)))
        total.update(b"\n")
    return total.hexdigest()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _leave(left_out: list[LeftOut], each: _Chosen, reason: str, sentence: str) -> None:
    left_out.append(LeftOut(each.candidate.image_id, each.kind, reason, sentence))


def _because(validation: Sequence[Example], left_out: Sequence[LeftOut]) -> str:
    """Return why no label is left to train on, with the first image of each reason."""
    reasons: dict[str, list[LeftOut]] = {}
    for each in left_out:
        reasons.setdefault(each.reason, []).append(each)
    parts = [
        f"{len(those)} left out ({reason}), such as {those[0].image}: {those[0].sentence.rstrip('.')}"
        for reason, those in reasons.items()
    ]
    if validation:
        names = [example.name for example in validation]
        parts.insert(
            0,
            f"{len(names)} of the labels {'is' if len(names) == 1 else 'are'} of patients that are kept for validation "
            f"({_listed(names)}); label images of other patients",
        )
    return "; ".join(parts) + "."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
