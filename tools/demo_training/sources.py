"""Where training planes come from: real images with masks, CT volumes, pasted chests, phantoms and nonsense.

Each source draws a `Plane`: a grey image, a mask for each structure, which of the structures are known (a real image is
labelled for one of them, all others of its modality are unknown), and which statements about the whole image hold.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medclipsam.demo import captions
from medclipsam.demo.chest_ct import LUNGS_FROM
from medclipsam.demo.phantoms import make_phantom, make_volume
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.windows import Window
from tools.demo_training.augment import Rng, smooth_field
from tools.demo_training.scribbles import draw_nonsense
from tools.demo_training.train_clip import image_states

MODALITIES = ("US", "MR", "XR", "CT")
# The directions of the text space that have a place in an image; "lungs" is left and right.
STRUCTURES = tuple(name for name in captions.STRUCTURES if name != "lungs")
SEEN_IN = {
    modality: tuple(name for name in STRUCTURES if modality in captions.SEEN_IN[name]) for modality in MODALITIES
}
STATES = tuple(captions.STATES)
NONSENSE = "NONE"

TASKS = {"breast_tumors": "US", "brain_tumors": "MR", "lung_xray": "XR"}
FINDING = {"US": "breast tumour", "MR": "brain tumour", "CT": "nodule"}

# Phantoms that training may see: from here on (smaller seeds are for development and measurements).
FIRST_SEED = 3_000_000
_PASTED_SEED = 8_000_000

# Structures of a CT are looked at through these windows (centre, width) in HU.
_WINDOWS = ((-600, 1500), (-600, 1500), (-500, 1400), (-400, 1800), (40, 400), (-200, 1200), (-600, 1000))


@dataclass
class Plane:
    """A training plane.

    Attributes
    ----------
    image : numpy.ndarray
        uint8 [H, W].
    masks : numpy.ndarray
        bool [K, H, W], one for each of `STRUCTURES`.
    known : numpy.ndarray
        bool [K]: whether the mask is the truth; where it is False nothing is known of that structure.
    states : numpy.ndarray
        int8 [S], one for each of `STATES`: 1 holds, 0 does not, -1 unknown.
    modality : str
        One of `MODALITIES`, or `NONSENSE`.
    """

    image: np.ndarray
    masks: np.ndarray
    known: np.ndarray
    states: np.ndarray
    modality: str


def _empty(image: np.ndarray, modality: str) -> Plane:
    """Return a plane of which is known only that it shows nothing of other modalities."""
    known = np.array([name not in SEEN_IN.get(modality, ()) for name in STRUCTURES])
    masks = np.zeros((len(STRUCTURES), *image.shape), dtype=bool)
    return Plane(image, masks, known, np.full(len(STATES), -1, dtype=np.int8), modality)


def _set(plane: Plane, name: str, mask: np.ndarray) -> None:
    index = STRUCTURES.index(name)
    plane.masks[index], plane.known[index] = mask, True


def _hold(plane: Plane, **states: int) -> None:
    for name, value in states.items():
        plane.states[STATES.index(name.replace("_", " "))] = value


# ------------------------------------------------------------------ real images


@dataclass(frozen=True)
class RealImage:
    """A line of the data's manifest: file, task, whether the target is present, and the group (patient) it is of."""

    task: str
    file: str
    group: str
    present: bool

    @property
    def modality(self) -> str:
        """One of `MODALITIES`."""
        return TASKS[self.task]


def training_images(data: Path) -> list[RealImage]:
    """Return the images of the `train` parts that may be trained on."""
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [
            RealImage(row["task"], row["file"], row["group"], row["target"] == "present")
            for row in csv.DictReader(file)
            if row["split"] == "train" and row["task"] in TASKS
        ]


def validation_groups(images: list[RealImage], share: float = 0.14, seed: int = 5) -> set[str]:
    """Draw whole groups for validation, a share of each task's with and without the target."""
    rng = np.random.default_rng(seed)
    by_kind: dict[tuple[str, bool], set[str]] = {}
    for image in images:
        by_kind.setdefault((image.task, image.present), set()).add(image.group)
    chosen: set[str] = set()
    for _, groups in sorted(by_kind.items()):
        order = rng.permutation(sorted(groups))
        chosen.update(order[: max(1, round(share * len(order)))].tolist())
    return chosen


def read_real(data: Path, image: RealImage, rng: Rng, *, healthy: bool, retoned: bool) -> Plane:
    """Read a real image with its mask.

    Parameters
    ----------
    data : pathlib.Path
        Folder with the manifest.
    image : RealImage
        Which one.
    rng : numpy.random.Generator
        For the two changes below.
    healthy : bool
        Whether a brain tumour is replaced by what the other half of the head shows, since the source has no brain
        without one.
    retoned : bool
        Whether a brain tumour is made brighter or darker than its surroundings, as other MR sequences show it.
    """
    path = data / image.task / "train_images" / image.file
    grey = np.asarray(Image.open(path).convert("L"))
    mask = np.asarray(Image.open(data / image.task / "train_masks" / image.file).convert("L")) > 0
    if healthy:
        grey = _without_tumour(grey, mask, rng)
    elif retoned:
        grey = _retoned(grey, mask, rng)
    plane = _empty(grey, image.modality)
    _hold(plane, normal_US=0, normal_MR=0)
    if image.modality == "XR":
        left, right = lung_sides(mask)
        _set(plane, "left lung", left)
        _set(plane, "right lung", right)
        # Shenzhen: the name ends in 0 for a normal chest and in 1 for tuberculosis.
        normal = image.file.endswith("_0.png")
        _hold(plane, normal_XR=int(normal), opacity=int(not normal))
        return plane
    _set(plane, FINDING[image.modality], np.zeros_like(mask) if healthy else mask)
    _hold(plane, **{f"normal_{image.modality}": int(healthy or not image.present)})
    return plane


def _without_tumour(image: np.ndarray, mask: np.ndarray, rng: Rng) -> np.ndarray:
    """Replace a tumour by mirrored tissue, or by its smoothed surroundings where it crosses the midline."""
    grey = image.astype(np.float32)
    head = grey > max(10.0, np.percentile(grey, 60) * 0.3)
    columns = np.flatnonzero(head.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2 if len(columns) else image.shape[1] / 2
    gone = ndimage.binary_dilation(mask, iterations=4 + int(rng.integers(0, 4)))
    mirror = np.clip(np.round(2 * middle - np.arange(image.shape[1])).astype(int), 0, image.shape[1] - 1)
    blend = np.clip(1.6 * ndimage.gaussian_filter(gone.astype(np.float32), 2.5), 0, 1)
    if (gone[:, mirror] & gone).sum() > 0.15 * gone.sum():
        weight = (~gone).astype(np.float32) * head
        spread = ndimage.gaussian_filter(weight, 12)
        filled = ndimage.gaussian_filter(grey * weight, 12) / np.maximum(spread, 1e-3)
        texture = np.roll(grey - ndimage.gaussian_filter(grey, 6), tuple(rng.integers(-60, 60, 2)), (0, 1))
        tissue = filled + 0.7 * texture
    else:
        tissue = grey[:, mirror]
    return np.clip(grey * (1 - blend) + tissue * blend, 0, 255).astype(np.uint8)


def _retoned(image: np.ndarray, mask: np.ndarray, rng: Rng) -> np.ndarray:
    grey = image.astype(np.float32) / 255
    grown = ndimage.binary_dilation(mask, iterations=int(rng.integers(0, 4)) or 1)
    blend = ndimage.gaussian_filter(grown.astype(np.float32), 1.5)
    tissue = grey[grey > 0.08]
    if not len(tissue):
        return image
    detail = grey - ndimage.gaussian_filter(grey, 5)
    if rng.random() < 0.7:
        goal = rng.uniform(0.6, 1.0) * max(float(np.percentile(tissue, 97)), 0.6)
        grain = 0.15 * ndimage.gaussian_filter(rng.normal(size=grey.shape), 2)
        changed = grey * rng.uniform(0.5, 0.9) * (1 - blend) + blend * (goal + grain + 0.5 * detail)
    else:
        goal = float(np.median(tissue)) * rng.uniform(0.3, 0.8)
        changed = grey * (1 - blend) + blend * (goal + 0.6 * detail)
    return (np.clip(changed, 0, 1) * 255).astype(np.uint8)


def lung_sides(lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a mask of both lungs into the patient's left (at the right of the image) and right lung."""
    left, right = np.zeros_like(lungs), np.zeros_like(lungs)
    columns = np.flatnonzero(lungs.any(axis=0))
    if not len(columns):
        return left, right
    middle, width = (columns[0] + columns[-1]) / 2, lungs.shape[1]
    labels, _ = ndimage.label(lungs)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels == index
        if part.sum() < 20:
            continue
        if box[1].start < middle - 0.12 * width and box[1].stop > middle + 0.12 * width:
            half = np.arange(width)[None] < middle
            right |= part & half
            left |= part & ~half
        elif np.nonzero(part)[1].mean() < middle:
            right |= part
        else:
            left |= part
    return left, right


# ------------------------------------------------------------------ CT in Hounsfield units


@cache
def ct_planes(data: Path) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return HU planes and lungs of the CT volumes that may be trained on; both end at the lungs' bases.

    The lungs are the two components of air inside the body that reach the uppermost planes and hold more than air.
    """
    import pydicom
    import SimpleITK

    volume = SimpleITK.ReadImage(str(data / "volumes" / "ct_totalsegmentator_example.nii.gz"))
    stack = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(volume, "LPS"))
    labels, _ = ndimage.label(stack < -500)
    lungs = np.zeros(stack.shape, dtype=bool)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[box] == index
        if box[0].start >= 99 and own.sum() > 1000 and np.median(stack[box][own]) > -880:
            lungs[box] |= own
    planes = [(plane, ndimage.binary_closing(own)) for plane, own in zip(stack, lungs, strict=True)]
    slices = [pydicom.dcmread(file) for file in (data / "volumes" / "ct_dicom_upper_abdomen").iterdir()]
    for one in sorted(slices, key=lambda one: float(one.ImagePositionPatient[2])):
        plane = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
        planes.append((plane, np.zeros(plane.shape, dtype=bool)))
    return tuple(planes)


def draw_ct(data: Path, rng: Rng) -> Plane:
    """Draw a plane of the CT volumes, a quarter of them near the lungs' bases."""
    planes = ct_planes(data)
    index = int(rng.integers(len(planes))) if rng.random() < 0.75 else int(rng.integers(101, 112))
    plane, lungs = planes[index]
    return _windowed(plane, *lung_sides(lungs), rng)


def draw_pasted_chest(data: Path, rng: Rng) -> Plane:
    """Draw the body wall of a real abdominal CT round lungs of a phantom's shape, with vessels and opacities."""
    planes = ct_planes(data)
    plane = planes[int(rng.integers(10, len(planes)))][0].astype(np.float32)
    plane = ndimage.zoom(plane, 320 / max(plane.shape), order=1)
    body = _body(plane)
    phantom = make_phantom("CT", _PASTED_SEED + int(rng.integers(10**6)))
    while not {"left lung", "right lung"} <= set(phantom.masks) or phantom.masks["lungs"].mean() < 0.03:
        phantom = make_phantom("CT", _PASTED_SEED + int(rng.integers(10**6)))
    rows, columns = np.nonzero(body)
    height, width = np.ptp(rows), np.ptp(columns)
    room = rng.uniform(0.10, 0.20, 4) * (height, height, width, width)
    inside = (rows.min() + room[0], rows.max() - room[1], columns.min() + room[2], columns.max() - room[3])
    lung_rows, lung_columns = np.nonzero(phantom.masks["lungs"])
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]

    def source(at: np.ndarray, low: float, high: float, lungs: np.ndarray) -> np.ndarray:
        return lungs.min() + (at - low) / (high - low) * np.ptp(lungs) + smooth_field(rng, plane.shape, 6, 3.0)

    places = [source(y, *inside[:2], lung_rows), source(x, *inside[2:], lung_columns)]
    wall = ndimage.binary_erosion(body, iterations=int(rng.integers(4, 10)))
    sides = {
        name: (ndimage.map_coordinates(phantom.masks[name].astype(np.float32), places, order=1) > 0.5) & wall
        for name in ("left lung", "right lung")
    }
    if rng.random() < 0.6:  # soft tissue in place of bowel and liver
        soft = 40 + 60 * ndimage.gaussian_filter(rng.normal(size=plane.shape), 3)
        blend = ndimage.gaussian_filter(ndimage.binary_erosion(body, iterations=12).astype(np.float32), 3)
        plane = np.where(plane > 200, plane, plane * (1 - blend) + soft * blend)
    blend = ndimage.gaussian_filter((sides["left lung"] | sides["right lung"]).astype(np.float32), 0.7)
    plane = plane * (1 - blend) + _parenchyma(plane.shape, rng) * blend
    if rng.random() < 0.5:  # the trachea
        centre = ((inside[0] + inside[1]) / 2 - 0.1 * height, columns.mean() + 4 * rng.normal())
        plane = np.where(np.hypot(y - centre[0], x - centre[1]) < rng.uniform(3, 7), -980, plane)
    if rng.random() < 0.3:  # no table
        plane = np.where(ndimage.binary_dilation(body, iterations=2), plane, -1000)
    return _windowed(plane, sides["left lung"], sides["right lung"], rng)


def _parenchyma(shape: tuple[int, ...], rng: Rng) -> np.ndarray:
    grain = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.6, 1.3))
    vessels = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(1.2, 2.2))
    density = rng.uniform(-900, -700) + grain * rng.uniform(20, 90) + smooth_field(rng, shape, 4, rng.uniform(0, 60))
    density = density + np.where(vessels / vessels.std() > rng.uniform(1.6, 2.6), rng.uniform(300, 800), 0)
    if rng.random() < 0.35:
        clouds = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(6, 16))
        amount = np.clip(1.5 * (clouds / clouds.std() - rng.uniform(0.8, 1.8)), 0, 1)
        density = density * (1 - amount) + amount * rng.uniform(-300, 50)
    return density


def _body(plane: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(ndimage.binary_opening(plane > -300, iterations=2))
    sizes = np.bincount(labels.ravel())
    return ndimage.binary_fill_holes(labels == 1 + int(sizes[1:].argmax()))


def _windowed(plane: np.ndarray, left: np.ndarray, right: np.ndarray, rng: Rng) -> Plane:
    centre, width = _WINDOWS[int(rng.integers(len(_WINDOWS)))]
    image = (np.clip((plane - (centre - width / 2)) / width, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.3:
        image = image * _body(plane)
    made = _empty(image, "CT")
    _set(made, "left lung", left)
    _set(made, "right lung", right)
    _hold(made, abdomen=int((left | right).mean() <= 0.01), normal_US=0, normal_MR=0, normal_XR=0, opacity=0, neck=0)
    return made


# ------------------------------------------------------------------ drawn images


def draw_phantom(modality: str, seed: int) -> Plane:
    """Draw a phantom, of which every structure is known."""
    phantom = make_phantom(modality, seed, size=(192, 256, 320)[seed % 3])
    plane = _empty(_grey(phantom.image), modality)
    plane.known[:] = True
    for name, mask in phantom.masks.items():
        if name in STRUCTURES:
            _set(plane, name, mask)
    plane.states[:] = 0
    _hold(plane, **{name.replace(" ", "_"): 1 for name in image_states(phantom)})
    return plane


def draw_volume_plane(modality: str, seed: int, rng: Rng) -> Plane:
    """Draw a plane of a phantom volume, as the pipeline shows it; planes at both ends and with the finding more often.

    Parameters
    ----------
    modality : {"MR", "CT"}
        Of the volume.
    seed : int
        Decides the volume.
    rng : numpy.random.Generator
        Decides the plane and a CT's window.
    """
    volume = np.random.default_rng([seed, 1])
    n_planes, size = int(volume.integers(16, 41)), int(volume.choice((160, 192, 256, 320)))
    sick = bool(volume.random() < 0.6)
    stack, masks = make_volume(modality, seed, n_planes, size=size, pathology=sick, raw=True)
    finding = masks.get(FINDING[modality], np.zeros(stack.shape, dtype=bool))
    held = np.flatnonzero(finding.any(axis=(1, 2)))
    kind = rng.random()
    if kind < 0.25:
        index = int(rng.choice((0, 1, 2, n_planes - 3, n_planes - 2, n_planes - 1)))
    elif kind < 0.6 and len(held):
        index = int(rng.choice(held))
    else:
        index = int(rng.integers(n_planes))
    window = None
    if modality == "CT":
        window = Window(-600, 1500) if rng.random() < 0.75 else Window(40, 600)
    plane = _empty(MedicalImage.from_array(stack, modality=modality).plane(index, window)[..., 0], modality)
    plane.known[:] = True
    for name, mask in masks.items():
        if name in STRUCTURES:
            _set(plane, name, mask[index])
    plane.states[:] = 0
    height = 2 * index / (n_planes - 1) - 1
    # of a plane beside a finding it is open whether it is normal
    normal = 1 if not sick else 0 if finding[index].any() else -1
    if modality == "MR":
        _hold(plane, normal_MR=normal, above_ventricles=_above(masks.get("ventricles"), index, height > 0.15))
    elif "lungs" in masks and masks["lungs"][index].any():
        _hold(plane, normal_CT=normal, above_heart=_above(masks.get("heart"), index, height > 0.2))
    else:
        below = height < LUNGS_FROM + 0.1
        _hold(plane, abdomen=int(below), neck=int(not below))
    return plane


def _above(mask: np.ndarray | None, index: int, high: bool) -> int:
    """Return whether a plane is above a structure: 1, 0, or -1 where it does not cut it and may be below."""
    if mask is not None and mask[index].any():
        return 0
    return 1 if high else -1


def draw_nothing(seed: int) -> Plane:
    """Draw a picture that is no medical image."""
    plane = _empty(_grey(draw_nonsense(seed, 256)), NONSENSE)
    plane.states[:] = 0
    return plane


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


# ------------------------------------------------------------------ the queue


@dataclass(frozen=True)
class Job:
    """One plane to be drawn and embedded.

    Attributes
    ----------
    kind : {"real", "phantom", "volume", "nonsense", "ct", "pasted"}
        Its source.
    modality : str
        One of `MODALITIES`, or `NONSENSE`.
    image : RealImage or None
        Of a real image, which.
    number : int
        Decides a phantom's seed, and tells the variants of one image apart.
    healthy : bool
        See `read_real`.
    validation : bool
        Whether it is for validation, and then not changed.
    """

    kind: str
    modality: str
    image: RealImage | None = None
    number: int = 0
    healthy: bool = False
    validation: bool = False

    @property
    def present(self) -> bool:
        """Whether a real image shows its target."""
        return self.image is not None and self.image.present and not self.healthy


_VARIANTS = {("US", True): 3, ("US", False): 6, ("MR", True): 1, ("XR", True): 2}
_PHANTOMS = {"US": 200, "MR": 250, "XR": 250, "CT": 380}
_VOLUMES = {"MR": 700, "CT": 700}
_CT, _PASTED, _NONSENSE = 180, 400, 150
# Of phantoms, for each modality; their seeds follow on those for training.
_VALIDATION = {"phantom": 40, "volume": 80}
# A third of the validation brains and half of the training ones are also used without their tumour.
_HEALTHY = {True: 0.33, False: 0.55}


def queue(data: Path, seed: int = 11) -> list[Job]:
    """Return all jobs in an order whose every part is balanced, so that training can begin before the last is done."""
    rng = np.random.default_rng(seed)
    images = training_images(data)
    held_out = validation_groups(images)
    placed: list[tuple[float, Job]] = []
    validation: list[Job] = []
    for image in images:
        if image.group in held_out:
            validation.append(Job("real", image.modality, image, validation=True))
        else:
            n = _VARIANTS[image.modality, image.present]
            placed += [((v + rng.random()) / n, Job("real", image.modality, image, v)) for v in range(n)]
        if image.modality == "MR" and rng.random() < _HEALTHY[image.group in held_out]:
            job = Job("real", "MR", image, 50, healthy=True, validation=image.group in held_out)
            if job.validation:
                validation.append(job)
            else:
                placed.append((rng.random(), job))
    for kind, numbers in (("phantom", _PHANTOMS), ("volume", _VOLUMES)):
        for modality, n in numbers.items():
            placed += [(rng.random(), Job(kind, modality, number=number)) for number in range(n)]
            held = range(n, n + _VALIDATION[kind])
            validation += [Job(kind, modality, number=number, validation=True) for number in held]
    for kind, modality, n in (("nonsense", NONSENSE, _NONSENSE), ("ct", "CT", _CT), ("pasted", "CT", _PASTED)):
        placed += [(rng.random(), Job(kind, modality, number=number)) for number in range(n)]
    training = [job for _, job in sorted(placed, key=lambda pair: pair[0])]
    order = rng.permutation(len(validation))
    return training[:600] + [validation[i] for i in order] + training[600:]


def draw(data: Path, job: Job, rng: Rng) -> Plane:
    """Draw the plane of a job, before any augmentation."""
    if job.kind == "real":
        assert job.image is not None
        retoned = job.modality == "MR" and not job.validation and not job.healthy and rng.random() < 0.25
        return read_real(data, job.image, rng, healthy=job.healthy, retoned=retoned)
    if job.kind == "phantom":
        return draw_phantom(job.modality, FIRST_SEED + job.number)
    if job.kind == "volume":
        return draw_volume_plane(job.modality, FIRST_SEED + job.number, rng)
    if job.kind == "nonsense":
        return draw_nothing(FIRST_SEED + job.number)
    return draw_ct(data, rng) if job.kind == "ct" else draw_pasted_chest(data, rng)


def counts(jobs: list[Job]) -> Iterator[tuple[str, int]]:
    """Yield how many jobs each source has."""
    names = [f"{job.kind} {job.modality}{' (validation)' if job.validation else ''}" for job in jobs]
    for name in dict.fromkeys(names):
        yield name, names.count(name)
