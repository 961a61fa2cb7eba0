"""What is measured on: images and the masks that belong to them, from the paper's layout or a MONAI Label folder.

DATA/<task>/{train,val,test}_{images,masks}      image and mask share their name, the extension aside
DATA/tasks.yaml                                  what is asked for in each task (optional, docs/evaluation.md)

STUDIES/labels/final/<image>.<ext>               a folder of MONAI Label with its corrected labels
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.base.formats import LOSSY_SUFFIXES, SEG_SUFFIX
from medclipsam.base.progress import ProgressBar
from medclipsam.evaluation.tasks import Task, read_tasks, task_of_folder
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.label_map import LabelMap, ValueNames, read_label_map
from medclipsam.studies.final import is_by_person, waits_for_consensus
from medclipsam.studies.find import DATASTORE, find_images, read_datastore, stem
from medclipsam.targets import TargetSet

SPLITS = ("train", "val", "test")
FINAL = "final"

# A binary mask in a lossy format has grey fringes.


@dataclass(frozen=True)
class Case:
    """One image with the mask of one task.

    Attributes
    ----------
    task : Task
        What is asked for.
    name : str
        Name of the image below its folder, without its extension; with the task it identifies the case.
    image, mask : pathlib.Path
        The files.
    split : {"train", "val", "test", "final"}
        The split; "final" for corrected labels of a studies folder.
    """

    task: Task
    name: str
    image: Path
    mask: Path
    split: str

    @property
    def unit(self) -> tuple[str, str]:
        """Folder and name: what tasks that share an image have in common."""
        return self.task.folder, self.name


def find_cases(
    data: Path,
    targets: TargetSet,
    *,
    split: str = "test",
    only: Sequence[str] = (),
    tasks_file: Path | None = None,
    label_map: Mapping[int, str] | None = None,
) -> list[Case]:
    """Find and pair the images and masks of a data folder.

    Parameters
    ----------
    data : pathlib.Path
        A folder in the paper's layout, or a studies folder with `labels/final`.
    targets : TargetSet
        The known targets; a task without an entry in tasks.yaml is looked up here by its folder's name.
    split : {"train", "val", "test"}
        Which split of the paper's layout.
    only : sequence of str
        Names of the tasks to keep; all by default.
    tasks_file : pathlib.Path, optional
        Instead of `DATA/tasks.yaml`.
    label_map : mapping of int to str, optional
        Names of the values in final labels of a studies folder with which no names were saved.

    Returns
    -------
    list of Case
        Images in the order of folders and names; the tasks of one image follow each other.

    Raises
    ------
    InputError
        If a folder, image or mask is missing, two share a name, or a task is unknown; the sentence names it.
    """
    if not data.is_dir():
        raise InputError(f"There is no data folder {data}.")
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; allowed: {', '.join(SPLITS)}.")
    if (data / "labels" / FINAL).is_dir():
        cases = _study_cases(data, targets, label_map or {})
    else:
        cases = _layout_cases(data, targets, split, tasks_file)
    if only:
        known = list(dict.fromkeys(case.task.name for case in cases))
        for name in only:
            if name not in known:
                raise InputError(f"There is no task {name!r} in {data}; there are: {', '.join(known)}.")
        cases = [case for case in cases if case.task.name in only]
    cases.sort(key=lambda case: case.unit)
    return cases


def draw_cases(cases: Sequence[Case], limit: int, seed: int, *, show: bool = False) -> list[Case]:
    """Draw images at random, with the target present and absent in the proportion of the data.

    Parameters
    ----------
    cases : sequence of Case
        All of them.
    limit : int
        Images of each task's folder; a folder that has no more is kept whole. Where tasks share a folder, an image is
        drawn with all of its tasks, and each combination of present and absent targets in its proportion.
    seed : int
        The same seed draws the same images.
    show : bool
        Whether to show progress.

    Returns
    -------
    list of Case
        In the order given.

    Raises
    ------
    InputError
        If a mask cannot be read.
    """
    folders: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        folders[case.task.folder][case.name].append(case)
    kept: set[tuple[str, str]] = set()
    large = {folder: images for folder, images in folders.items() if len(images) > limit}
    total = sum(map(len, large.values()))
    with ProgressBar(total=total, desc="reading masks", unit="image", show=show) as bar:
        for folder, images in large.items():
            strata: dict[tuple[tuple[str, bool], ...], list[str]] = defaultdict(list)
            for name, each in images.items():
                strata[tuple((case.task.name, _is_present(case)) for case in each)].append(name)
                bar.update()
            shares = _allot([len(names) for names in strata.values()], limit)
            for index, (names, share) in enumerate(zip(strata.values(), shares, strict=True)):
                order = np.random.default_rng([seed, index]).permutation(len(names))
                kept |= {(folder, names[place]) for place in order[:share]}
    return [case for case in cases if case.task.folder not in large or case.unit in kept]


def _allot(sizes: Sequence[int], limit: int) -> list[int]:
    """Share `limit` among strata in proportion to their sizes (largest remainders; the smaller stratum before)."""
    shares = [limit * size // sum(sizes) for size in sizes]
    left = [limit * size % sum(sizes) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda index: (-left[index], sizes[index]))
    for index in order[: limit - sum(shares)]:
        shares[index] += 1
    return shares


def _is_present(case: Case) -> bool:
    """Return whether a mask holds the target; the image is read only where the mask has layers."""
    try:
        layered = case.mask.name.lower().endswith(SEG_SUFFIX)
        return bool(_truth(case, read_image(case.image if layered else case.mask)).any())
    except MedClipSamError as error:
        raise InputError(f"The mask {case.mask} cannot be used: {error}") from error


def read_case(case: Case, image: MedicalImage | None = None) -> tuple[MedicalImage, np.ndarray]:
    """Read an image and the truth of a case.

    Parameters
    ----------
    case : Case
        What to read.
    image : MedicalImage, optional
        The image, where it was read already for another task.

    Returns
    -------
    image : MedicalImage
    truth : numpy.ndarray
        bool [n_planes, H, W] in display orientation.

    Raises
    ------
    InputError
        If a file cannot be read or the mask does not fit the image; the sentence names the file.
    """
    if image is None:
        image = read_image(case.image)
        if image.modality is None and case.task.modality is not None:
            image = read_image(case.image, modality=case.task.modality)
    try:
        return image, _truth(case, image)
    except InputError as error:
        raise InputError(f"The mask {case.mask} cannot be used: {error}") from error


def _truth(case: Case, image: MedicalImage) -> np.ndarray:
    lossy = case.mask.suffix.lower() in LOSSY_SUFFIXES
    label = LabelMap(_lossy_mask(case.mask, image), image) if lossy else _read_label(case.mask, image)
    if case.task.labels is None:
        return label.values > 0
    truth: np.ndarray = np.isin(label.layers, case.task.labels).any(axis=0)
    return truth


def _read_label(path: Path, image: MedicalImage) -> LabelMap:
    """Read a label map whose segments may overlap, with the values of its file and the names of its own segments."""
    return read_label_map(path, image, ValueNames(), {})[0]


def _lossy_mask(path: Path, image: MedicalImage) -> np.ndarray:
    """Read a binary mask whose format blurs it: what is brighter than half is inside."""
    mask = read_image(path)
    if (mask.n_planes, *mask.plane_shape) != (image.n_planes, *image.plane_shape):
        raise InputError(f"It has {mask.plane_shape} pixels, its image {image.plane_shape}.")
    return image.from_native(mask.plane(0)[..., 0] > 127).astype(np.uint8)


def check_cases(cases: Iterable[Case]) -> None:
    """Read every image and mask once, so that a bad file is told before hours of work and not after.

    Raises
    ------
    InputError
        As `read_case`.
    """
    unit, image = None, None
    for case in cases:
        image, _ = read_case(case, image if case.unit == unit else None)
        unit = case.unit


def _layout_cases(data: Path, targets: TargetSet, split: str, tasks_file: Path | None) -> list[Case]:
    file = tasks_file or data / "tasks.yaml"
    if tasks_file is not None and not tasks_file.is_file():
        raise InputError(f"There is no tasks file {tasks_file}.")
    listed = read_tasks(file, targets) if file.is_file() else []
    described = {task.folder for task in listed}
    folders = sorted(path.name for path in data.iterdir() if path.is_dir() and _images_folder(path, split).is_dir())
    tasks = [*listed, *(task_of_folder(name, targets) for name in folders if name not in described)]
    if not tasks:
        raise InputError(f"{data} holds no task: no folder in it has a folder {split}_images.")
    pairs = {folder: _pairs(data / folder, split) for folder in {task.folder for task in tasks}}
    return [
        Case(task, name, image, mask, split) for task in tasks for name, (image, mask) in pairs[task.folder].items()
    ]


def _images_folder(task: Path, split: str) -> Path:
    # The published scripts call the training folders plainly images and masks.
    plain = task / "images"
    return plain if split == "train" and plain.is_dir() else task / f"{split}_images"


def _pairs(task: Path, split: str) -> dict[str, tuple[Path, Path]]:
    images = _images_folder(task, split)
    masks = images.with_name(images.name.replace("images", "masks"))
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"The folder {folder} is missing; a task has {images.name} and {masks.name}.")
    found, drawn = _by_name(images), _by_name(masks)
    if not found:
        raise InputError(f"The folder {images} holds no image.")
    for name, image in found.items():
        if name not in drawn:
            raise InputError(f"The image {image} has no mask of its name in {masks}.")
    for name, mask in drawn.items():
        if name not in found:
            raise InputError(f"The mask {mask} has no image of its name in {images}.")
    return {name: (image, drawn[name]) for name, image in found.items()}


def _by_name(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for image in find_images(folder):
        name = image.stem
        if name in named:
            raise InputError(f"{named[name]} and {image.path} have one name; names without extension must be unique.")
        named[name] = image.path
    return named


def _study_cases(studies: Path, targets: TargetSet, label_map: Mapping[int, str]) -> list[Case]:
    """Make a case of every image with a final label and every structure that the label's description names.

    A mask that a model has made is no final label, see `is_by_person`, and neither are labels of several people of
    which no consensus was made.
    """
    images = {image.image_id: image.path for image in find_images(studies, only_whole=True)}
    infos = _label_infos(studies)
    described = {name: ValueNames.from_monailabel(info).by_value() for name, info in infos.items()}
    table = {target.label: target.name for target in targets}
    cases = []
    for mask in sorted((studies / "labels" / FINAL).iterdir()):
        if mask.name.startswith(".") or not mask.is_file():
            continue
        name = stem(mask.name)
        info = infos.get(name, {})
        if not is_by_person(info) or waits_for_consensus(studies / "labels", name, info):
            continue
        if name not in images:
            raise InputError(f"The label {mask} has no image of its name in {studies}.")
        image = read_image(images[name])
        try:
            label = _read_label(mask, image)
        except InputError as error:
            raise InputError(f"The label {mask} cannot be used: {error}") from error
        own = described.get(name) or {value: each for each, value in label.names.items()}
        known = {value: table[value] for value in label.present if value in table}
        names: Mapping[int, str] = own or label_map or known
        for value in sorted(label.present):
            if value not in names:
                raise InputError(
                    f"The label {mask} holds the value {value}, which "
                    + (
                        "its description does not name."
                        if own
                        else f"is not the id of a known target; name it with --label-map {value}=NAME."
                    )
                )
        for value, structure in names.items():
            task = task_of_folder(structure, targets, folder=FINAL, labels=(value,))
            cases.append(Case(task, name, images[name], mask, FINAL))
    if not cases:
        raise InputError(f"{studies / 'labels' / FINAL} holds no label with a structure.")
    return cases


def _label_infos(studies: Path) -> dict[str, dict[str, Any]]:
    """Return for each image what is kept with its final label, where MONAI Label's datastore file says so."""
    try:
        return {
            name: dict(entry["labels"][FINAL]["info"])
            for name, entry in read_datastore(studies).items()
            if FINAL in entry["labels"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{studies / DATASTORE} is not a datastore file of MONAI Label: {error!r}.") from error
