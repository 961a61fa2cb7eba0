"""A label set, read into a studies folder: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from medclipsam import __version__
from medclipsam.base.errors import CancelledError, InputError
from medclipsam.exchange.cases import Incoming
from medclipsam.exchange.coco import read_coco
from medclipsam.exchange.dicom_sets import read_dicom
from medclipsam.exchange.nifti_sets import read_bids, read_nifti, read_nnunet
from medclipsam.exchange.options import Format, ImportOptions
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.label_map import LabelMap, is_same_label, number_names
from medclipsam.studies.final import REPLACES, SAVED_BY
from medclipsam.targets import TargetSet, label_table

Action = Literal["new", "replaced", "beside", "unchanged", "kept"]


class LabelStore(Protocol):
    """Where labels are imported into."""

    def images(self) -> Mapping[str, Path]:
        """Return the file or series folder of each image by its id."""
        ...

    def label(self, image_id: str, image: MedicalImage) -> tuple[LabelMap, dict[str, Any]] | None:
        """Return an image's final label and what is kept with it; None where there is none."""
        ...

    def save(self, image_id: str, label: LabelMap, info: Mapping[str, Any]) -> None:
        """Save a final label in place of the one before, read back and compared."""
        ...

    def remove(self, image_id: str) -> None:
        """Remove an image's final label."""
        ...

    def add_image(self, image_id: str, path: Path) -> str:
        """Copy an image into the studies, and return its id there."""
        ...

    def remove_image(self, image_id: str) -> None:
        """Remove an image that `add_image` has added."""
        ...


@dataclass
class ImportedCase:
    """What became of one case, or would become of it.

    Attributes
    ----------
    name : str
        The set's name for it.
    image_id : str
        The image of the studies.
    action : {"new", "replaced", "beside", "unchanged", "kept"}
        Whether its label is new, takes the place of another one, counts beside that of another reader, is the one that
        is there, or is not taken since there is another one.
    image_copied : bool
        Whether the image came with the set.
    names : dict of str to int
        The structures, by the names and values that they have here.
    renamed : dict of str to str
        The set's names to those here, where they differ.
    left_out : list of str
        Structures that were left out.
    """

    name: str
    image_id: str
    action: Action
    image_copied: bool = False
    names: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def import_labels(
    folder: Path,
    kind: Format,
    store: LabelStore,
    options: ImportOptions | None = None,
    *,
    dry_run: bool = False,
    names: Mapping[str, str] | None = None,
    targets: TargetSet | None = None,
    progress: Callable[[int, int], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[ImportedCase]:
    """Read a label set into a studies folder.

    Every case is read and checked before the first is saved, and where saving fails what was saved is taken back.

    Parameters
    ----------
    folder : Path
        The set, as `export_labels` or another program wrote it.
    kind : {"nnunet", "coco", "nifti", "bids", "seg", "rtstruct"}
    store : LabelStore
        Where labels go.
    options : ImportOptions, optional
    dry_run : bool
        Whether everything is read and checked, and nothing written.
    names : mapping of str to str, optional
        The set's names to names here; an empty one leaves the structure out. In sets of other programs, others become
        the known target that has them as a name or synonym; the rest keep their names.
    targets : TargetSet, optional
        The known targets; the built-in ones by default.
    progress : callable, optional
        Called with the steps done and in all.
    cancelled : callable, optional
        Asked before each case; True stops the work, and nothing is changed.

    Returns
    -------
    list of ImportedCase

    Raises
    ------
    InputError
        If the set cannot be read, a name is not in it, an image is missing, or a label does not lie on its image. Then
        nothing is changed.
    CancelledError
        If the caller asked to stop.
    """
    options = options or ImportOptions()
    known = targets or TargetSet.load()
    if not folder.is_dir():
        raise InputError(f"The label set {folder} is not a folder.")
    cases = _read(folder, kind)
    here = store.images()
    seen: dict[str, str] = {}
    for case in cases:
        if case.image_id in seen:
            raise InputError(f"{case.name} and {seen[case.image_id]} of the set are both labels of {case.image_id}.")
        seen[case.image_id] = case.name
        if case.image_id not in here and (case.image is None or not options.images):
            raise InputError(
                f"The studies have no image {case.image_id!r}, which {case.name} was labelled on, "
                + ("and the set brings none that can be copied." if options.images else "and images are not copied.")
            )
    steps = len(cases) * (1 if dry_run else 2)
    done, unknown, plans = 0, set(names or {}), []

    def step() -> None:
        nonlocal done
        if cancelled is not None and cancelled():
            raise CancelledError("The import was cancelled; nothing was changed.")
        if progress is not None:
            progress(done, steps)
        done += 1

    for case in cases:
        step()
        plan, _ = _plan(case, here, store, options, names or {}, known)
        unknown -= {*plan.renamed, *plan.left_out, *plan.names}
        plans.append(plan)
    if unknown:
        raise InputError(f"No label of the set is called {sorted(unknown)[0]!r}, which a name was given for.")
    if not dry_run:
        _save(cases, plans, store, options, names or {}, known, kind, step)
    if progress is not None:
        progress(steps, steps)
    return plans


def _read(folder: Path, kind: Format) -> list[Incoming]:
    if kind == "nnunet":
        # the folder itself, or the only data set in the one that was exported to
        inner = sorted(folder.glob("Dataset*/dataset.json"))
        return read_nnunet(inner[0].parent if len(inner) == 1 and not (folder / "dataset.json").exists() else folder)
    if kind == "coco":
        return read_coco(folder)
    if kind == "bids":
        return read_bids(folder)
    if kind in ("seg", "rtstruct"):
        return read_dicom(folder, "seg" if kind == "seg" else "rtstruct")
    return read_nifti(folder)


def _plan(
    case: Incoming,
    here: Mapping[str, Path],
    store: LabelStore,
    options: ImportOptions,
    names: Mapping[str, str],
    known: TargetSet,
) -> tuple[ImportedCase, LabelMap]:
    """Return what is to become of a case, and its label map."""
    copied = case.image_id not in here
    path = here.get(case.image_id) or case.image
    assert path is not None
    modality = case.provenance.get("modality")
    image = read_image(path, modality=modality if isinstance(modality, str) else None)
    try:
        read = case.read(image)
    except InputError as error:
        raise InputError(f"The label of {case.name} cannot be imported: {error}") from error
    given = read.names
    if strange := read.unnamed():
        raise InputError(f"The label of {case.name} holds {', '.join(map(str, strange))}, which the set does not name.")
    ours = "image" in case.provenance
    wanted = {name: names.get(name, name if ours else _known_name(name, known, image.modality)) for name in given}
    kept = {name: value for name, value in given.items() if wanted[name]}
    numbers = number_names([(wanted[name], value) for name, value in kept.items()], label_table(known))
    label = read.renumbered({value: numbers[wanted[name]] for name, value in kept.items()}, numbers, numbers)
    before = None if copied else store.label(case.image_id, image)
    action: Action = "new"
    if before is not None:
        # another person's label is one more, also where it is the same
        other = options.existing == "beside" and before[1].get(SAVED_BY) != _person(case, options)
        changed: dict[str, Action] = {"keep": "kept", "replace": "replaced", "beside": "beside"}
        action = changed[options.existing] if other or not is_same_label(before[0], label) else "unchanged"
    renamed = {name: wanted[name] for name in kept if wanted[name] != name}
    left_out = [name for name in given if not wanted[name]]
    return ImportedCase(case.name, case.image_id, action, copied, numbers, renamed, left_out), label


def _known_name(name: str, known: TargetSet, modality: str | None) -> str:
    """Return the name of the known target that a name is one of; else the name."""
    found = known.match(name, modality)
    return name if found is None else found.name


def _save(
    cases: Sequence[Incoming],
    plans: Sequence[ImportedCase],
    store: LabelStore,
    options: ImportOptions,
    names: Mapping[str, str],
    known: TargetSet,
    kind: Format,
    step: Callable[[], None],
) -> None:
    """Save what was planned; where that fails, take back what was saved."""
    undo: list[Callable[[], object]] = []
    try:
        for case, plan in zip(cases, plans, strict=True):
            step()
            if plan.action in ("unchanged", "kept"):
                continue
            if plan.image_copied and case.image is not None:
                added = store.add_image(case.image_id, case.image)
                undo.append(partial(store.remove_image, added))
                if added != case.image_id:
                    raise InputError(
                        f"The image of {case.name} would be listed as {added!r} and not {case.image_id!r}."
                    )
            _, label = _plan(case, store.images(), store, options, names, known)
            before = store.label(case.image_id, label.image)
            info = _info(case, plan, options, kind)
            if before is None:
                undo.append(partial(store.remove, case.image_id))
            else:
                undo.append(partial(store.save, case.image_id, before[0], {**before[1], REPLACES: [info[SAVED_BY]]}))
                if options.existing == "replace":
                    info[REPLACES] = [before[1].get(SAVED_BY)]
            store.save(case.image_id, label, info)
    except BaseException:
        for each in reversed(undo):
            each()
        raise


def _info(case: Incoming, plan: ImportedCase, options: ImportOptions, kind: Format) -> dict[str, Any]:
    """Return what is kept with an imported label: where it comes from, and who drew it."""
    origin = {key: value for key, value in case.provenance.items() if key not in ("classes", "test", "fold")}
    imported = {"format": kind, "case": case.name, "version": __version__, "renamed": plan.renamed, "origin": origin}
    return {SAVED_BY: _person(case, options), "imported": imported}


def _person(case: Incoming, options: ImportOptions) -> str:
    """Return who drew the label of a case."""
    person = case.provenance.get(SAVED_BY)
    return person if isinstance(person, str) else options.reader
