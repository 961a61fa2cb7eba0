"""`medclipsam segment`: masks of one or more images."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam import __version__
from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.base.files import file_sha256
from medclipsam.base.formats import MASK_SUFFIXES, SEG_SUFFIX, STUDY_SUFFIXES, suffix_of
from medclipsam.base.options import ZeroShotOptions
from medclipsam.cli.common import add_model_arguments, add_pipeline_options, choose_device, pipeline_options, target_set

if TYPE_CHECKING:
    from medclipsam.imaging.label_map import LabelMap
    from medclipsam.pipeline.zero_shot import ZeroShot, ZeroShotResult

_SUFFIXES = (SEG_SUFFIX, *MASK_SUFFIXES)
# What `segment` has written to a folder: a line for each mask.
_RECORD = ".masks.tsv"


def add_segment(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    segment = commands.add_parser("segment", help="find what a text asks for in one or more images")
    segment.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE|FOLDER",
        help="image files, DICOM series folders, or folders of them",
    )
    segment.add_argument(
        "--text", required=True, action="append", help='what to find; several targets split by ";", or --text again'
    )
    segment.add_argument(
        "--out",
        required=True,
        type=Path,
        help="mask file (.seg.nrrd keeps targets that overlap whole); a folder for several images",
    )
    segment.add_argument("--overlay", type=Path, help="picture of the mask on the image (PNG); a folder for several")
    segment.add_argument("--report", type=Path, help="evidence as JSON; a folder for several images")
    segment.add_argument(
        "--measure", type=Path, metavar="CSV", help="table of measurements, a line for each target of each image"
    )
    segment.add_argument("--suffix", choices=_SUFFIXES, default=".nii.gz", help="mask format where --out is a folder")
    segment.add_argument(
        "--skip-existing",
        action="store_true",
        help="with folders: keep masks already written for the same image, text, options and weights",
    )
    segment.add_argument("--modality", help="DICOM modality of images that do not say (PNG, NIfTI): US, MR, CR, CT ...")
    add_model_arguments(segment)
    add_pipeline_options(segment)
    segment.set_defaults(run=_segment)


def _segment(given: argparse.Namespace) -> int:
    # The quick checks come before the imports that take seconds.
    options = pipeline_options(given)
    for path in given.images:
        if not path.exists():
            raise InputError(f"There is no image {path}.")
    from medclipsam.server.inference.request_schema import checked_modality
    from medclipsam.targets import joined_text, parse_prompt

    known = target_set(given.targets_file)
    given.modality = checked_modality(given.modality, {each for target in known for each in target.modality})
    given.text = joined_text(given.text)
    parse_prompt(given.text, given.modality, known)
    jobs = _jobs(given)

    from medclipsam.base.progress import ProgressBar
    from medclipsam.measurements.table import MeasurementTable
    from medclipsam.pipeline.zero_shot import ZeroShot

    table = MeasurementTable(given.measure, keep=given.skip_existing) if given.measure else None
    if given.skip_existing and len(jobs) == 1:
        raise InputError("--skip-existing is for several images; there is only one.")
    pipeline = ZeroShot.load(given.weights, device=choose_device(given.device), targets=known)
    several = len(jobs) > 1
    settings = _settings(pipeline, given, options)
    if given.skip_existing:
        before, made = len(jobs), _read_record(given.out)
        if table is not None:
            made = {name: digest for name, digest in made.items() if _image_name(name) in table.images}
        jobs = [(source, files) for source, files in jobs if not _is_done(source, files, settings, made, given.out)]
        print(f"{before - len(jobs)} of {before} images were done already.")
    failed = 0
    with ProgressBar(jobs, unit="image", show=several) as bar:
        for source, files in bar:
            try:
                digest = _digest(source, settings)
                result = _segment_one(pipeline, source, files, given, options, show=not several)
                if table is not None:
                    name = files["out"].relative_to(given.out).as_posix() if several else source.name
                    table.add(_image_name(name), ((t.name, t.label, t.measurements) for t in result.targets))
                if several:
                    _record(given.out, files["out"], digest)
            except MedClipSamError as error:
                if not several:
                    raise
                failed += 1
                ProgressBar.write(f"medclipsam: {error}", file=sys.stderr)
                continue
            ProgressBar.write(result.sentence if not several else f"{source}: {result.sentence}", file=sys.stdout)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images could not be segmented; the others are done.")
    return 0


def _settings(pipeline: ZeroShot, given: argparse.Namespace, options: ZeroShotOptions) -> str:
    """Return everything that the mask of an image depends on beside the image, as text."""
    targets = [file_sha256(file) for file in given.targets_file]
    parts = [__version__, given.text, given.modality, options.to_dict(), pipeline.weights, targets]
    return json.dumps(parts, sort_keys=True, default=str)


def _digest(source: Path, settings: str) -> str:
    """Return what identifies a mask: its settings, and name, size and time of the image's files."""
    files = sorted(file for file in source.iterdir() if file.is_file()) if source.is_dir() else [source]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(f"{settings}\n{stats}".encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, str]:
    """Return which masks were written to a folder: name below it to the digest of what it was made from."""
    try:
        lines = (folder / _RECORD).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    made: dict[str, str] = {}
    for line in lines:
        name, tab, digest = line.rpartition("\t")
        if tab:  # the last line may have been cut off
            made[name] = digest
    return made


def _record(folder: Path, mask: Path, digest: str) -> None:
    try:
        with open(folder / _RECORD, "a", encoding="utf-8") as file:
            file.write(f"\n{mask.relative_to(folder).as_posix()}\t{digest}\n")
    except OSError as error:
        raise InputError(f"{folder / _RECORD} cannot be written: {error.strerror}.") from error


def _is_done(source: Path, files: dict[str, Path], settings: str, made: dict[str, str], folder: Path) -> bool:
    """Return whether all files of an image are there, and its mask can be read and was made with these settings."""
    from medclipsam.imaging import read_image
    from medclipsam.imaging.label_map import is_seg_nrrd
    from medclipsam.imaging.seg_nrrd import read_segments

    if not all(path.is_file() for path in files.values()):
        return False
    if made.get(files["out"].relative_to(folder).as_posix()) != _digest(source, settings):
        return False
    try:
        read_segments(files["out"]) if is_seg_nrrd(files["out"]) else read_image(files["out"])
    except MedClipSamError:
        return False
    return True


def _jobs(given: argparse.Namespace) -> list[tuple[Path, dict[str, Path]]]:
    """Pair each image with the files to write for it, and check these before any work is done."""
    from medclipsam.studies.find import find_images, find_volumes

    found: list[tuple[Path, Path]] = []  # image, and what its files are called below the output folder
    for path in given.images:
        if path.is_file():
            volumes = find_volumes(path)
            found += [(folder, Path(f"{_stem(path.name)}-{key}")) for key, folder in volumes.items()]
            found += [] if volumes else [(path, Path(_stem(path.name)))]
            continue
        inside = find_images(path)
        if not inside:
            raise InputError(f"The folder {path} holds no image.")
        found += [(image.path, Path(image.stem or path.resolve().name)) for image in inside]
    asked = {"overlay": given.overlay, "report": given.report}
    if len(found) == 1:
        if not given.out.name.endswith(_SUFFIXES):
            raise InputError(f"The mask cannot be written as {given.out.name!r}; allowed: {', '.join(_SUFFIXES)}.")
        if given.overlay and given.overlay.suffix.lower() != ".png":
            raise InputError(f"The overlay cannot be written as {given.overlay.name!r}; allowed: .png.")
        files = {"out": given.out, **{key: path for key, path in asked.items() if path}}
        for path in files.values():
            if not path.parent.is_dir():
                raise InputError(f"The folder {path.parent} of {path.name!r} does not exist.")
            if path.is_dir():
                raise InputError(f"{path} is a folder; for one image a file is written.")
        return [(found[0][0], files)]
    suffixes = {"out": given.suffix, "overlay": ".png", "report": ".json"}
    folders = {"out": given.out, **{key: path for key, path in asked.items() if path}}
    for key, folder in folders.items():
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--{key} {folder} is a file; for several images it must be a folder.")
    if len(set(folders.values())) != len(folders) and given.suffix == ".png":
        raise InputError("--out and --overlay name the same folder and both write PNG files; name two folders.")
    jobs: dict[Path, tuple[Path, dict[str, Path]]] = {}
    for image, stem in found:
        if stem in jobs:
            raise InputError(f"{jobs[stem][0]} and {image} would both be written as {stem}; segment them one by one.")
        jobs[stem] = (image, {key: folder / f"{stem}{suffixes[key]}" for key, folder in folders.items()})
    return list(jobs.values())


def _segment_one(
    pipeline: ZeroShot,
    source: Path,
    files: dict[str, Path],
    given: argparse.Namespace,
    options: ZeroShotOptions,
    *,
    show: bool,
) -> ZeroShotResult:
    from medclipsam.base.progress import ProgressBar
    from medclipsam.imaging import read_image, write_mask, write_overlay
    from medclipsam.imaging.label_map import is_seg_nrrd

    image = read_image(source, modality=given.modality)
    with ProgressBar(total=100, unit="%", leave=False, show=show and image.is_volume) as bar:

        def progress(fraction: float, message: str) -> None:
            bar.set_description(message)
            bar.update(round(100 * fraction) - bar.n)

        result = pipeline.segment(image, given.text, options, progress=progress)
    # All files are made beside their places first: either all of them appear or none.
    made: list[tuple[Path, Path]] = []
    folders: list[tempfile.TemporaryDirectory[str]] = []
    try:
        for kind, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".medclipsam-")
            folders.append(folder)
            partial = Path(folder.name) / path.name
            if kind == "out":
                label = result.label_map(image)
                if is_seg_nrrd(partial):
                    label.write(partial)
                else:
                    write_mask(label.values, image, partial)
                    _warn_of_overlaps(label, path)
            elif kind == "overlay":
                write_overlay(
                    result.labels, image, result.label_names, partial, window=result.window, beneath=result.beneath
                )
            else:
                partial.write_text(json.dumps(result.to_dict(), indent=2), encoding="utf-8")
            made.append((partial, path))
        for partial, path in made:
            os.replace(partial, path)
    except OSError as error:
        raise InputError(f"The result of {source} cannot be written: {error.strerror} ({error.filename}).") from error
    finally:
        for folder in folders:
            folder.cleanup()
    return result


def _warn_of_overlaps(label: LabelMap, path: Path) -> None:
    from medclipsam.base.progress import ProgressBar

    if label.overlaps:
        ProgressBar.write(
            f"{path.name}: targets overlap in {label.overlap_voxels} voxels, which the smallest of them has in this "
            f"format; {SEG_SUFFIX} keeps each of them whole.",
            file=sys.stderr,
        )


def _image_name(name: str) -> str:
    """Return what an image is called in the table, given the name of its mask below the folder or its own."""
    return name[: len(name) - len(suffix_of(name, (*_SUFFIXES, *STUDY_SUFFIXES)))]


def _stem(name: str) -> str:
    for suffix in (".nii.gz", *{Path(name).suffix}):
        if suffix and name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
