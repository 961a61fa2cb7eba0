"""The four public sets of the paper, as they are published, into the paper's layout.

Each converter reads one downloaded and unpacked folder and writes `OUT/<task>/<split>_{images,masks}`. The layouts of
the sets are those of their publishers; where a file is not where it should be, the error names it. Splits that the
publisher does not give are drawn by patient (or image) from a seed, and are not the paper's, which were not published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medclipsam.base.errors import ImageError, InputError
from medclipsam.base.extras import MissingExtraError
from medclipsam.base.progress import ProgressBar
from medclipsam.evaluation.data import SPLITS

# Share of train, validation and test where the publisher gives no split.
_SHARES = (0.8, 0.1, 0.1)
# A lossy mask is inside where it is brighter than half.
_HALF = 127


@dataclass(frozen=True)
class Pair:
    """One image with its mask, and who it is of.

    Attributes
    ----------
    name : str
        Name that both files get.
    patient : str
        What is never split: a patient, or the image itself where patients are not known.
    image, mask : numpy.ndarray
        uint8 [H, W] or [H, W, 3], and bool [H, W].
    split : str or None
        The publisher's split.
    """

    name: str
    patient: str
    image: np.ndarray
    mask: np.ndarray
    split: str | None = None


def convert(name: str, source: Path, out: Path, *, seed: int = 0, show: bool = False) -> dict[str, int]:
    """Convert one public set.

    Parameters
    ----------
    name : str
        Key of `SETS`.
    source : pathlib.Path
        The unpacked download.
    out : pathlib.Path
        Data folder; made if needed. Several sets may share a task (BUSI and UDIAT), but no file is replaced.
    seed : int
        Of drawn splits.
    show : bool
        Whether to show progress.

    Returns
    -------
    dict
        Split -> number of images.

    Raises
    ------
    InputError
        If the set is unknown, a file is missing or broken, or a file is there already.
    """
    if name not in SETS:
        raise InputError(f"There is no public set {name!r}; allowed: {', '.join(SETS)}.")
    task, read = SETS[name]
    if not source.is_dir():
        raise InputError(f"There is no folder {source}.")
    counts = dict.fromkeys(SPLITS, 0)
    for pair in ProgressBar(read(source), unit="image", show=show):
        split = pair.split or _drawn_split(pair.patient, seed)
        for kind, array in (("images", pair.image), ("masks", pair.mask.astype(np.uint8) * 255)):
            path = out / task / f"{split}_{kind}" / f"{pair.name}.png"
            if path.exists():
                raise InputError(f"{path} is there already; remove {out / task} or name another folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        counts[split] += 1
    if not sum(counts.values()):
        raise InputError(f"{source} holds no image of the set {name!r}; give the folder that its archive unpacks to.")
    return counts


def _busi(source: Path) -> Iterator[Pair]:
    """BUSI: `benign (1).png` with `benign (1)_mask.png`, further lesions as `_mask_1.png`; without the normal ones."""
    for kind in ("benign", "malignant"):
        for image in sorted(source.glob(f"**/{kind}/{kind} (*).png")):
            if "_mask" in image.stem:
                continue
            masks = sorted(image.parent.glob(f"{_literal(image.stem)}_mask*.png"))
            if not masks:
                raise InputError(f"The image {image} has no mask {image.stem}_mask.png.")
            union = np.logical_or.reduce([_grey(mask) > _HALF for mask in masks])
            number = int(image.stem.partition("(")[2].rstrip(")"))
            name = f"{kind}-{number:04d}"
            yield Pair(name, name, _pixels(image), union)


def _udiat(source: Path) -> Iterator[Pair]:
    """UDIAT (data set B): `original/000001.png` with `GT/000001.png`; all of it is the test split."""
    for image in sorted(source.glob("**/original/*.png")):
        mask = _needed(image.parent.with_name("GT") / image.name, image)
        yield Pair(image.stem, image.stem, _pixels(image), _grey(mask) > _HALF, "test")


def _covid_qu_ex(source: Path) -> Iterator[Pair]:
    """COVID-QU-Ex: `Lung Segmentation Data/{Train,Val,Test}/<class>/{images,lung masks}`; its own split."""
    for split, folder in (("train", "Train"), ("val", "Val"), ("test", "Test")):
        for image in sorted(source.glob(f"**/Lung Segmentation Data/{folder}/*/images/*.png")):
            mask = _needed(image.parent.with_name("lung masks") / image.name, image)
            kind = image.parent.parent.name
            yield Pair(f"{kind}-{image.stem}", image.stem, _pixels(image), _grey(mask) > _HALF, split)


def _chest_ct(source: Path) -> Iterator[Pair]:
    """Chest CT segmentation: `ID<patient>_<n>.jpg` with `ID<patient>_mask_<n>.jpg`; its first channel is the lungs."""
    masks = {path.name: path for path in source.glob("**/*_mask_*.jpg")}
    for image in sorted(source.glob("**/ID*_*.jpg")):
        if "_mask_" in image.name:
            continue
        patient, _, number = image.stem.rpartition("_")
        mask = masks.get(f"{patient}_mask_{number}.jpg")
        if mask is None:
            raise InputError(f"The image {image} has no mask {patient}_mask_{number}.jpg.")
        yield Pair(image.stem, patient, _pixels(image), _open(mask, "RGB")[..., 0] > _HALF)


def _figshare(source: Path) -> Iterator[Pair]:
    """Brain tumours of figshare: MATLAB 7.3 files `1.mat` with `cjdata` (image, tumorMask, PID)."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "The set 'brain-figshare' of HDF5 files") from None
    for path in sorted(source.glob("**/*.mat"), key=lambda path: (len(path.stem), path.stem)):
        if not re.fullmatch(r"\d+", path.stem):
            continue
        try:
            with h5py.File(path, "r") as file:
                record = file["cjdata"]
                # MATLAB stores columns first.
                image, mask = (np.asarray(record[key]).T for key in ("image", "tumorMask"))
                patient = "".join(chr(code) for code in np.asarray(record["PID"]).ravel())
        except (OSError, KeyError) as error:
            raise ImageError(f"{path} is not a file of the set: {error}.") from error
        low, high = float(image.min()), float(image.max())
        grey = np.rint(255 * (image - low) / max(high - low, 1.0)).astype(np.uint8)
        yield Pair(f"{int(path.stem):04d}", patient, grey, mask > 0)


SETS: dict[str, tuple[str, Callable[[Path], Iterator[Pair]]]] = {
    "busi": ("breast_tumors", _busi),
    "udiat": ("breast_tumors", _udiat),
    "brain-figshare": ("brain_tumors", _figshare),
    "covid-qu-ex": ("lung_xray", _covid_qu_ex),
    "chest-ct": ("lung_CT", _chest_ct),
}


def _drawn_split(patient: str, seed: int) -> str:
    """Draw a split that depends on the patient and the seed alone."""
    chance = np.random.default_rng([seed, *patient.encode()]).random()
    return SPLITS[int(np.searchsorted(np.cumsum(_SHARES)[:-1], chance, side="right"))]


def _needed(mask: Path, image: Path) -> Path:
    if not mask.is_file():
        raise InputError(f"The image {image} has no mask {mask}.")
    return mask


def _pixels(path: Path) -> np.ndarray:
    array = _open(path, "RGB")
    return array[..., 0] if (array == array[..., :1]).all() else array


def _grey(path: Path) -> np.ndarray:
    array = _open(path, "L")
    # Some masks hold 0 and 1.
    return array * np.uint8(255) if array.max() == 1 else array


def _open(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"{path} cannot be read: {error}.") from error


def _literal(name: str) -> str:
    """Return a name as a glob pattern that means it alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)
