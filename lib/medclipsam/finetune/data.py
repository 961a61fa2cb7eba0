"""Pairs of image and caption: CSV files, folders of images with report text, WebDataset shards.

Readers only list pairs; `prepare` reads every image once, in the way that inference reads it, and tells what cannot be
used before any training starts. What can be used is then read at random.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medclipsam.base.errors import CancelledError, ImageError, InputError, MedClipSamError
from medclipsam.base.extras import MissingExtraError
from medclipsam.base.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES, NRRD_SUFFIXES, PICTURE_SUFFIXES
from medclipsam.base.progress import ProgressBar
from medclipsam.encoders import Encoder
from medclipsam.finetune.captions import cut_caption, report_text, tidy
from medclipsam.imaging import read_image, read_origin
from medclipsam.imaging.dicom import looks_like_dicom, read_tags
from medclipsam.studies.find import find_images
from medclipsam.training.split import is_validation, patient_key

# Share of the rows that may be bad.
MAX_BAD = 0.1
# A caption of more pairs than this is no single patient's.
COMMON = 10
# Prepared images up to this many bytes are kept in memory.
CACHE_BYTES = 2 << 30

_IMAGE_COLUMNS = ("image", "filename", "file_name", "file", "image_path", "filepath", "path", "img", "name", "id")
_CAPTION_COLUMNS = ("caption", "captions", "text", "report", "findings", "description", "title")
_IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES, *NRRD_SUFFIXES)
_SHARD_IMAGES = tuple(suffix[1:] for suffix in _IMAGE_SUFFIXES)
_SHARD_CAPTIONS = ("txt", "caption", "json")
_STUDY_TAGS = ("StudyInstanceUID", "ImageComments", "StudyDescription", "SeriesDescription")
# How many bad rows a sentence names.
_NAMED = 3


@dataclass(frozen=True)
class Pair:
    """One image with its caption.

    Parameters
    ----------
    name : str
        What messages call it: a row of a CSV file, an image's path in its folder, a sample of a shard.
    path : pathlib.Path
        The image: a file or the folder of a DICOM series.
    caption : str
        Its text, uncut.
    plane : int or None
        0-based display plane of a volume; None takes the middle one.
    modality : str or None
        DICOM modality of an image that does not say it.
    group : str
        What stays together when pairs are held out, see `medclipsam.training.split.patient_key`; empty for the image.
    """

    name: str
    path: Path
    caption: str
    plane: int | None = None
    modality: str | None = None
    group: str = ""

    def load(self) -> tuple[np.ndarray, str | None]:
        """Return the display plane, uint8 [H, W, 3], as inference sees it, and the image's modality where it is known.

        Raises
        ------
        MedClipSamError
            If the image cannot be read or has no such plane.
        """
        image = read_image(self.path, modality=self.modality)
        plane = image.n_planes // 2 if self.plane is None else self.plane
        if not 0 <= plane < image.n_planes:
            raise InputError(f"{self.path} has no plane {plane}; allowed: 0 to {image.n_planes - 1}.")
        return image.plane(plane), image.modality


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    name: str
    reason: str


@dataclass
class Listing:
    """What a source holds: pairs, and rows that are none."""

    pairs: list[Pair] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def add(self, other: Listing) -> None:
        """Append another listing."""
        self.pairs += other.pairs
        self.bad += other.bad


def read_source(
    source: Path, *, work: Path, images: Path | None = None, columns: Mapping[str, str] | None = None
) -> Listing:
    """List the pairs of a source of any kind.

    Parameters
    ----------
    source : pathlib.Path
        A CSV or TSV file, a WebDataset shard (.tar) or a folder of shards, or a folder of images with report text.
    images : pathlib.Path, optional
        Folder of a CSV file's images.
    work : pathlib.Path
        Where shards are unpacked.
    columns : mapping, optional
        See `read_csv`.

    Raises
    ------
    InputError
        If the source is not there or is of no such kind.
    """
    if source.is_file() and source.suffix.lower() in (".csv", ".tsv", ".txt"):
        return read_csv(source, images=images, columns=columns)
    if source.is_file() and source.suffix.lower() == ".tar":
        return read_shards([source], work)
    if source.is_dir():
        shards = sorted(source.glob("*.tar"))
        return read_shards(shards, work) if shards else read_folder(source)
    raise InputError(
        f"{source} holds no pairs; allowed: a CSV or TSV file, a WebDataset shard (.tar), or a folder of shards or of "
        f"images with report text."
    )


def read_csv(
    file: Path,
    *,
    images: Path | None = None,
    columns: Mapping[str, str] | None = None,
    also: Sequence[Path] = (),
    within: Sequence[Path] | None = None,
) -> Listing:
    """List the pairs of a table, as MedPix (`filename`, `Caption`) and ROCO (`id`, `name`, `caption`) come.

    Parameters
    ----------
    file : pathlib.Path
        UTF-8 with a line of headings; comma, semicolon or tab between the columns. Columns `plane` (0-based) and
        `modality` (DICOM) are read where they are there.
    images : pathlib.Path, optional
        Folder that image names are relative to; by default the table's own and its sub-folder `images`. A name
        without its suffix, as ROCO version 2 has them, is looked for with the usual ones.
    columns : mapping, optional
        Heading of `image` and of `caption`, where they are not among the usual ones.
    also : sequence of pathlib.Path
        Further folders that image names may be relative to.
    within : sequence of pathlib.Path, optional
        Folders that images must lie in; anywhere by default.

    Returns
    -------
    Listing

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The table {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    head = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    headings = [heading.strip() for heading in next(rows, [])]
    image_at = _column(file, headings, "image", _IMAGE_COLUMNS, columns)
    caption_at = _column(file, headings, "caption", _CAPTION_COLUMNS, columns)
    lower = [heading.lower() for heading in headings]
    extra = {key: lower.index(key) for key in ("plane", "modality") if key in lower}
    folders = [*([images] if images else [file.parent, file.parent / "images"]), *also]
    allowed = None if within is None else [folder.resolve() for folder in within]
    found = Listing()
    for number, row in _rows(rows):
        name = f"{file.name} row {number}"
        if row is None or len(row) <= max(image_at, caption_at):
            found.bad.append(BadRow(name, "it has too few columns or is no row of this table"))
            continue
        image, caption = row[image_at].strip(), tidy(row[caption_at])
        name = f"{name} ({image})" if image else name
        place = _find(image, folders)
        more = {key: row[at].strip() for key, at in extra.items() if at < len(row) and row[at].strip()}
        if not caption:
            found.bad.append(BadRow(name, "the caption is empty"))
        elif place is None:
            found.bad.append(BadRow(name, "there is no such image"))
        elif allowed is not None and not any(place.resolve().is_relative_to(folder) for folder in allowed):
            found.bad.append(BadRow(name, "the image lies outside the folders that may be read"))
        elif not re.fullmatch("[0-9]{1,9}", more.get("plane", "0")):
            found.bad.append(BadRow(name, f"plane {more['plane'][:20]!r} is not a whole number from 0"))
        else:
            plane = int(more["plane"]) if "plane" in more else None
            found.pairs.append(Pair(name, place, caption, plane, more.get("modality")))
    return found


def read_folder(folder: Path, *, descriptions: bool = False) -> Listing:
    """List the images of a folder, and of its sub-folders, that have report text.

    Parameters
    ----------
    folder : pathlib.Path
        Any images that this package reads.
    descriptions : bool
        See `Reports.of`.

    Returns
    -------
    Listing
        Images without a text are bad rows.
    """
    reports = Reports(folder)
    found = Listing()
    for image in find_images(folder):
        name = image.name or folder.name
        text = reports.of(image.location, descriptions=descriptions)
        if text:
            try:
                patient, study, _ = read_origin(image.path)
            except ImageError:
                found.bad.append(BadRow(name, "its patient cannot be read"))
                continue
            found.pairs.append(Pair(name, image.path, text, group=patient_key(name, patient=patient, study=study)))
        else:
            found.bad.append(BadRow(name, "it has no report text"))
    return found


class Reports:
    """Report texts of a folder's images.

    Parameters
    ----------
    folder : pathlib.Path
        Where structured reports are looked for, when the first image without a text file asks for one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._structured: dict[str, str] | None = None

    def of(self, image: Path, *, descriptions: bool = False) -> str | None:
        """Return the text of an image: the first that there is of

        - a text file of its name beside it (`chest.dcm`, `chest.txt`), which goes for a series' folder too;
        - `report.txt` in its folder, or a text file of the folder's name beside that (MIMIC-CXR's layout);
        - a DICOM structured report of its study;
        - with `descriptions`, the image's comments, or the descriptions of its study and series.

        Parameters
        ----------
        image : pathlib.Path
            A file or the folder of a DICOM series.
        descriptions : bool
            Whether the short descriptions that a scanner writes will do.
        """
        own = image if image.is_dir() else image.parent
        for file in (image.with_name(f"{_stem(image)}.txt"), own / "report.txt", own.parent / f"{own.name}.txt"):
            if file.is_file():
                text = report_text(file.read_text(encoding="utf-8", errors="replace"))
                if text:
                    return text
        header = _header(image)
        if header is None:
            return None
        if self._structured is None:
            self._structured = _structured_reports(self._folder)
        told = self._structured.get(str(header.get("StudyInstanceUID", "")))
        if told or not descriptions:
            return told
        comments = tidy(str(header.get("ImageComments", "") or ""))
        short = (tidy(str(header.get(key, "") or "")) for key in ("StudyDescription", "SeriesDescription"))
        return comments or ", ".join(part for part in dict.fromkeys(short) if part) or None


def read_shards(shards: Sequence[Path], work: Path) -> Listing:
    """List the samples of WebDataset shards, whose images are unpacked once into a folder.

    A sample is an image (`.jpg`, `.png`, `.dcm`, `.nii.gz` ...) and its caption (`.txt`, `.caption`, or `.json` with
    the key `caption` or `text`).

    Parameters
    ----------
    shards : sequence of pathlib.Path
        Tar files.
    work : pathlib.Path
        Unpacked into its sub-folder `shards`; what an earlier call has unpacked of the same files is used.

    Raises
    ------
    InputError
        If a shard is not there or is no tar file, or webdataset is not installed.
    """
    try:
        import webdataset
    except ImportError:
        raise MissingExtraError("webdataset", "A WebDataset shard") from None
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"There is no shard {shard}.")
    stamp = [[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    folder = work / "shards"
    index = folder / "index.json"
    if index.is_file():
        known = json.loads(index.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            pairs = [Pair(name, folder / file, caption) for name, file, caption in known["pairs"]]
            return Listing(pairs, [BadRow(*row) for row in known["bad"]])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = Listing()
    for shard in shards:
        # absolute, since the reader would run what looks like a command
        samples = webdataset.WebDataset([str(shard.resolve())], shardshuffle=False, empty_check=False)
        try:
            for sample in samples:
                _unpack(sample, shard, folder, found)
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise InputError(f"The shard {shard} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    content = {
        "stamp": stamp,
        "pairs": [[pair.name, pair.path.name, pair.caption] for pair in found.pairs],
        "bad": [[row.name, row.reason] for row in found.bad],
    }
    part = index.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(index)
    return found


class PreparedPairs(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Pairs whose images were read once and can be used.

    An item is the encoder's input [3, S, S], the caption's tokens [context], and the caption's number.

    Attributes
    ----------
    pairs : list of Pair
        What is left.
    captions : list of str
        Their captions, cut to the encoder's context.
    caption_ids : torch.Tensor
        int64 [N]; pairs of the same caption have the same number.
    modalities : list of (str or None)
        DICOM modality of each image, where it is known.
    bad : list of BadRow
        What was left out, in the source's order.
    digest : str
        sha256 of all inputs and captions, in order.
    """

    def __init__(
        self,
        pairs: list[Pair],
        captions: list[str],
        modalities: list[str | None],
        tokens: torch.Tensor,
        bad: list[BadRow],
        digest: str,
        load: _Loader,
        kept: list[torch.Tensor] | None,
    ) -> None:
        self.pairs, self.captions, self.modalities = pairs, captions, modalities
        self.bad, self.digest = bad, digest
        numbers: dict[str, int] = {}
        self.caption_ids = torch.tensor([numbers.setdefault(text.lower(), len(numbers)) for text in captions])
        self._tokens = tokens
        self._load = load
        self._kept = kept

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        image = self._load(self.pairs[index])[0] if self._kept is None else self._kept[index]
        return image, self._tokens[index], int(self.caption_ids[index])

    def replaced(self, images: list[torch.Tensor]) -> PreparedPairs:
        """Return the same pairs with other tensors in place of the images, such as what a frozen part makes of them."""
        return PreparedPairs(
            self.pairs, self.captions, self.modalities, self._tokens, self.bad, self.digest, self._load, images
        )

    @property
    def in_memory(self) -> bool:
        """Whether the images are kept in memory."""
        return self._kept is not None

    def batches(self, order: Sequence[Sequence[int]], workers: int = 0) -> DataLoader[Any]:
        """Return a loader of batches of the given indices: inputs, tokens and caption numbers, stacked."""
        return DataLoader(self, batch_sampler=list(map(list, order)), num_workers=0 if self.in_memory else workers)


def prepare(
    listing: Listing,
    encoder: Encoder,
    *,
    max_bad: float = MAX_BAD,
    cache_bytes: int = CACHE_BYTES,
    workers: int = 0,
    what: str = "pairs",
    show: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> PreparedPairs:
    """Read every image once, cut the captions, and leave out what cannot be used.

    Parameters
    ----------
    listing : Listing
        Pairs, and rows that are bad already.
    encoder : Encoder
        Makes the inputs (letterboxed, as zero-shot segmentation does by default) and counts tokens.
    max_bad : float
        Share of all rows that may be bad, in [0, 1].
    cache_bytes : int
        Inputs are kept in memory if all of them take no more.
    workers : int
        Processes that read.
    what : str
        For messages: "pairs for training".
    show : bool
        Whether to show progress.
    cancelled : callable, optional
        Asked now and then whether to stop.

    Returns
    -------
    PreparedPairs

    Raises
    ------
    InputError
        If more than `max_bad` of the rows are bad, or no pair is left; the sentence names the first bad ones.
    CancelledError
        If it was cancelled.
    """
    load = _Loader(encoder)
    # The model is no part of what worker processes are sent.
    read = _Attempts(listing.pairs, load)
    loader = DataLoader(read, batch_size=None, num_workers=workers)
    digest = hashlib.sha256()
    pairs, captions, modalities, bad, kept = [], [], [], list(listing.bad), []
    size = 0
    with ProgressBar(loader, total=len(listing.pairs), desc=f"reading {what}", unit="image", show=show) as bar:
        for pair, (tensor, modality, reason) in zip(listing.pairs, bar, strict=True):
            if cancelled is not None and cancelled():
                raise CancelledError("The fine-tuning was cancelled.")
            if reason:
                bad.append(BadRow(pair.name, reason))
                continue
            caption = cut_caption(pair.caption, encoder.count_tokens, encoder.context_length)
            digest.update(hashlib.sha256(tensor.numpy().tobytes()).digest() + caption.encode() + b"\0")
            pairs.append(pair)
            captions.append(caption)
            modalities.append(modality)
            size += tensor.nbytes
            if size <= cache_bytes:
                kept.append(tensor)
    check_bad(bad, len(pairs) + len(bad), max_bad, what)
    tokens = torch.cat([encoder.tokenizer(captions[at : at + 256]) for at in range(0, len(captions), 256)])
    return PreparedPairs(
        pairs,
        captions,
        modalities,
        tokens,
        bad,
        digest.hexdigest(),
        load,
        kept if len(kept) == len(pairs) else None,
    )


def check_bad(bad: Sequence[BadRow], total: int, max_bad: float, what: str) -> None:
    """Raise `InputError` where too many rows are bad, or none is good."""
    if total - len(bad) > 0 and len(bad) <= max_bad * total:
        return
    named = "; ".join(f"{row.name}: {row.reason.rstrip('.')}" for row in bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    raise InputError(
        f"{len(bad)} of {total} {what} cannot be used, at most {max_bad:.0%} may be bad"
        + (f" ({named}{more})." if bad else ".")
    )


def split_listing(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Split pairs into those to learn from and held-out ones, so that no patient, image or caption is in both.

    Whether pairs are held out is decided by their name and the seed alone: a later call with more pairs holds the same
    ones out. A caption that more than `COMMON` pairs share is that of a kind of image, and ties nothing together.

    Parameters
    ----------
    listing : Listing
        All pairs.
    share : float
        Expected share of held-out pairs.
    seed : int
        Another seed holds others out.

    Returns
    -------
    train, held : Listing
        `held` has at least two pairs where there are enough; the bad rows stay with the first.
    """
    groups = _groups(listing.pairs)
    # a greater share adds groups and keeps those of a smaller one, so that one that is just held out can be found
    ranked = sorted(groups, key=lambda name: _rank(name, seed))
    chosen: set[int] = set()
    for name in ranked:
        if len(chosen) >= 2 and not is_validation(name, seed, share):
            break
        chosen |= {id(pair) for pair in groups[name]}
    return (
        Listing([pair for pair in listing.pairs if id(pair) not in chosen], list(listing.bad)),
        Listing([pair for pair in listing.pairs if id(pair) in chosen]),
    )


def _rank(name: str, seed: int) -> bytes:
    """Order names as `is_validation` does."""
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


def _groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Return pairs that hang together, by patient, image or caption, under a name that is that of one of them."""
    shared = Counter(pair.caption.lower() for pair in pairs)
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def key_of(pair: Pair) -> str:
        return pair.group or f"image {pair.path}"

    for pair in pairs:
        keys = [key_of(pair), f"image {pair.path}"]
        if shared[pair.caption.lower()] <= COMMON:
            keys.append(f"text {pair.caption.lower()}")
        first, *others = (root(key) for key in keys)
        for other in others:
            parent[root(other)] = root(first)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(root(key_of(pair)), []).append(pair)
    return {min(pair.group or pair.path.name for pair in members): members for members in groups.values()}


class _Loader:
    """Pair -> the encoder's input and the modality; holds of the encoder what a worker process needs and no more."""

    def __init__(self, encoder: Encoder) -> None:
        self._preprocess = encoder.input_maker()

    def __call__(self, pair: Pair) -> tuple[torch.Tensor, str | None]:
        plane, modality = pair.load()
        return self._preprocess(plane), modality


class _Attempts(Dataset[tuple[torch.Tensor, str | None, str]]):
    """Inputs and modalities, or the sentences that say why there is none."""

    def __init__(self, pairs: Sequence[Pair], load: _Loader) -> None:
        self._pairs, self._load = pairs, load

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str | None, str]:
        try:
            return *self._load(self._pairs[index]), ""
        except MedClipSamError as error:
            return torch.empty(0), None, str(error)


def _column(
    file: Path, headings: Sequence[str], what: str, usual: Sequence[str], columns: Mapping[str, str] | None
) -> int:
    wanted = (columns or {}).get(what)
    lower = [heading.lower() for heading in headings]
    for name in [wanted.lower()] if wanted else usual:
        if name in lower:
            return lower.index(name)
    allowed = repr(wanted) if wanted else "one of " + ", ".join(usual)
    raise InputError(
        f"The table {file} has no column of the {what} among {', '.join(headings)[:200] or 'no headings'}; allowed: "
        f"{allowed}."
    )


def _rows(rows: Any) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each row that is not empty with its number (the headings are row 1), None for one that cannot be read."""
    number = 1
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield number, None
            continue
        if any(cell.strip() for cell in row):
            yield number, row


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    if not name or "\0" in name:
        return None
    for folder in folders:
        for suffix in ("", *_IMAGE_SUFFIXES):
            try:
                path = folder / f"{name}{suffix}"
                if path.is_file() or (path.is_dir() and not suffix):
                    return path
            except OSError:  # a name too long for a file
                return None
    return None


def _stem(image: Path) -> str:
    return image.name.removesuffix(".gz").rsplit(".", 1)[0] if not image.is_dir() else image.name


def _header(image: Path) -> Any:
    """Return what a DICOM image, or a series' first slice, says of its study; None for other files."""
    files = sorted(file for file in image.iterdir() if file.is_file()) if image.is_dir() else [image]
    first = next((file for file in files if looks_like_dicom(file)), None)
    return None if first is None else _dataset(first, _STUDY_TAGS)


def _structured_reports(folder: Path) -> dict[str, str]:
    """Return the text of the DICOM structured reports in a folder, by study."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        data = _dataset(file) if file.is_file() and looks_like_dicom(file) else None
        if data is not None and data.get("Modality") == "SR":
            found.setdefault(str(data.get("StudyInstanceUID", "")), []).extend(_texts(data))
    return {study: text for study, parts in found.items() if (text := report_text(" ".join(parts)))}


def _dataset(file: Path, tags: Sequence[str] | None = None) -> Any:
    """Return a DICOM file's elements without its pixels, None where it cannot be read."""
    try:
        return read_tags(file, tags)
    except Exception:
        # files break in more ways than pydicom has errors for
        return None


def _texts(item: Any) -> Iterator[str]:
    for part in item.get("ContentSequence", []):
        if part.get("ValueType") == "TEXT" and part.get("TextValue"):
            names = part.get("ConceptNameCodeSequence") or [{}]
            heading = str(names[0].get("CodeMeaning", "")).upper()
            yield f"{heading}: {part.TextValue}" if heading else str(part.TextValue)
        yield from _texts(part)


def _unpack(sample: Mapping[str, Any], shard: Path, folder: Path, found: Listing) -> None:
    """Put a sample's image into the folder and its pair into the listing."""
    name = f"{shard.name}/{sample['__key__']}"
    suffix = next((suffix for suffix in _SHARD_IMAGES if suffix in sample), None)
    text = next((key for key in _SHARD_CAPTIONS if key in sample), None)
    if suffix is None or text is None:
        missing = "image" if suffix is None else "caption"
        found.bad.append(BadRow(name, f"the sample has no {missing}"))
        return
    try:
        caption = tidy(_shard_caption(bytes(sample[text]), text))
    except (UnicodeDecodeError, json.JSONDecodeError):
        caption = ""
    if not caption:
        found.bad.append(BadRow(name, "the caption is empty or cannot be read"))
        return
    file = folder / f"{len(found.pairs):08d}.{suffix}"
    file.write_bytes(sample[suffix])
    found.pairs.append(Pair(name, file, caption))


def _shard_caption(content: bytes, kind: str) -> str:
    text = content.decode("utf-8")
    if kind != "json":
        return text
    told = json.loads(text)
    return str((told.get("caption") or told.get("text") or "") if isinstance(told, dict) else "")
