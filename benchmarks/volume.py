"""Volumes: `propagate` beside `planes`, in one run.

    python benchmarks/volume.py ct [--planes 200] [--size 512]   seconds, first mask, peak memory; lungs, phantom CT
    python benchmarks/volume.py phantoms [--count 50] [--modality CT]   tumours on brain MR, nodules on chest CT
    python benchmarks/volume.py cases                            vanishing and returning, two tumours, an absent one
    python benchmarks/volume.py real FOLDER                      NAME.nii.gz with NAME_lungs.nii.gz, CT
    python benchmarks/volume.py memory FILE                      peak memory of lungs on a CT

Figures are means; intervals are 95 % bootstrap intervals of the mean difference, `propagate` less `planes`. "Beyond" is
the share of planes with a mask that lie outside the true structure's first and last plane.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medclipsam.base.metrics import area_flicker, dice, hausdorff95, lesion_counts
from medclipsam.base.options import ZeroShotOptions
from medclipsam.base.statistics import compare_pairs
from medclipsam.demo.phantoms import make_volume
from medclipsam.imaging import MedicalImage, read_image, read_mask
from medclipsam.pipeline.zero_shot import ZeroShot

MODES = ("planes", "propagate")
# Seeds that no training and no choice of settings saw.
FIRST_SEED = 700_000
# Height and width of the body in mm that a phantom's planes show.
FIELD = {"CT": (320.0, 340.0), "MR": (160.0, 200.0)}
TEXTS = {"CT": ("nodule", "lung nodule"), "MR": ("brain tumour", "brain tumour")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["ct", "phantoms", "cases", "real", "memory"])
    parser.add_argument("folder", nargs="?", type=Path, help="of real volumes; for memory, a file")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--planes", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--absent", type=int, default=10, help="phantoms: volumes without the finding")
    parser.add_argument("--modality", choices=["MR", "CT"], help="phantoms: of this modality alone")
    given = parser.parse_args(arguments)
    model = ZeroShot.load(given.weights, device=given.device)
    print(f"{given.weights}, {given.device}, {torch.get_num_threads()} threads", flush=True)
    if given.part == "real":
        compare(model, real(given.folder))
    elif given.part == "phantoms":
        for modality, planes in (("MR", 24), ("CT", 40)):
            if given.modality in (None, modality):
                compare(model, phantoms(modality, planes, given.count))
                absent(model, modality, planes, given.absent)
    elif given.part == "cases":
        cases(model)
    elif given.part == "memory":
        memory(model, given.folder)
    else:
        times(model, given)


@dataclass(frozen=True)
class Volume:
    """A volume, what is asked for, and its true mask."""

    name: str
    image: MedicalImage
    text: str
    truth: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What one mask measures."""

    dice: float
    lesion_f1: float
    hd95_mm: float | None
    flicker: float | None
    beyond: int
    held: int


def compare(model: ZeroShot, volumes: Iterator[Volume]) -> None:
    """Print the figures of each volume and of all."""
    rows: dict[str, list[Measured]] = {mode: [] for mode in MODES}
    names = []
    for volume in volumes:
        names.append(("volumes", volume.name))
        for mode in MODES:
            rows[mode].append(measured(model, volume, mode))
        told = "   ".join(f"{mode} Dice {rows[mode][-1].dice:.3f}" for mode in MODES)
        print(f"{volume.name:<24}{told}", flush=True)
    for mode in MODES:
        of = {name: [getattr(each, name) for each in rows[mode]] for name in Measured.__dataclass_fields__}
        beyond = 100 * sum(of["beyond"]) / max(1, sum(of["held"]))
        print(
            f"{mode:<12}Dice {mean(of['dice']):.3f}   lesion F1 {mean(of['lesion_f1']):.3f}   "
            f"HD95 {mean(of['hd95_mm']):.1f} mm   flicker {mean(of['flicker']):.3f}   beyond {beyond:.1f} %"
        )
    for figure in ("dice", "lesion_f1"):
        one, two = ([getattr(each, figure) for each in rows[mode]] for mode in MODES)
        if len(names) > 1:
            found = compare_pairs(one, two, names)
            print(f"{figure}: difference {found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
    flicker = [mean([each.flicker for each in rows[mode]]) for mode in MODES]
    print(f"flicker, ratio: {flicker[1] / flicker[0]:.2f}", flush=True)


def measured(model: ZeroShot, volume: Volume, mode: str) -> Measured:
    result = model.segment(volume.image, volume.text, ZeroShotOptions(volume=mode))
    mask = result.labels > 0
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    true = np.flatnonzero(volume.truth.any(axis=(1, 2)))
    beyond = int(((held < true[0]) | (held > true[-1])).sum()) if len(true) else len(held)
    spacing = (volume.image.plane_spacing or 1.0, *(volume.image.pixel_spacing or (1.0, 1.0)))
    return Measured(
        dice(mask, volume.truth),
        lesion_counts(mask, volume.truth).f1,
        hausdorff95(mask, volume.truth, spacing=spacing),
        area_flicker(mask, volume.truth),
        beyond,
        len(held),
    )


def mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def phantom(
    modality: str, seed: int, planes: int, size: int = 192, *, pathology: bool = True
) -> tuple[MedicalImage, dict[str, np.ndarray]]:
    """Return a phantom volume with distances, and its masks."""
    stack, masks = make_volume(modality, seed, planes, size=size, pathology=pathology, raw=True)
    return as_image(stack, modality), masks


def as_image(stack: np.ndarray, modality: str) -> MedicalImage:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.nii"
        write(stack, modality, path)
        return read_image(path, modality=modality)


def write(stack: np.ndarray, modality: str, path: Path) -> None:
    height, width = FIELD[modality]
    pixel = width / max(stack.shape[1:])
    stored = stack[:, ::-1, ::-1].transpose(2, 1, 0)
    steps = np.diag([pixel, pixel, height / len(stack), 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), steps), path)


def phantoms(modality: str, planes: int, count: int) -> Iterator[Volume]:
    structure, text = TEXTS[modality]
    made, seed = 0, FIRST_SEED
    while made < count:
        image, masks = phantom(modality, seed, planes)
        if structure in masks:
            yield Volume(f"{modality} {seed}", image, text, masks[structure])
            made += 1
        seed += 1


def absent(model: ZeroShot, modality: str, planes: int, count: int) -> None:
    """Print in how many volumes without a finding one is found all the same."""
    text = TEXTS[modality][1]
    images = [phantom(modality, FIRST_SEED + k, planes, pathology=False)[0] for k in range(count)]
    for mode in MODES:
        found = [model.segment(image, text, ZeroShotOptions(volume=mode)).targets[0].found for image in images]
        print(f"{mode:<12}without a finding: a mask in {sum(found)} of {count}", flush=True)


def real(folder: Path) -> Iterator[Volume]:
    for mask in sorted(folder.glob("*_lungs.nii.gz")):
        image = read_image(mask.with_name(mask.name.replace("_lungs", "")), modality="CT")
        yield Volume(mask.name.removesuffix("_lungs.nii.gz"), image, "lungs", read_mask(mask, image) > 0)


def cases(model: ZeroShot) -> None:
    """A tumour that vanishes in the middle and returns, a second one on the other side, and a healthy head."""
    for seed in range(FIRST_SEED, FIRST_SEED + 8):
        stack, masks = make_volume("MR", seed, 48, size=192, raw=True)
        truth = masks["brain tumour"]
        held = np.flatnonzero(truth.any(axis=(1, 2)))
        if len(held) < 9:
            continue
        mirrored, other = stack[:, :, ::-1], truth[:, :, ::-1] & ~truth
        gone, twice = stack.copy(), stack.copy()
        part, middle = truth.copy(), held[len(held) // 3 : 2 * len(held) // 3]
        for plane in middle:
            gone[plane][truth[plane]] = mirrored[plane][truth[plane]]
            part[plane] = False
        twice[other] = mirrored[other]
        healthy, _ = make_volume("MR", seed, 48, size=192, pathology=False, raw=True)
        for name, volume, true in (
            ("returns", gone, part),
            ("two", twice, truth | other),
            ("absent", healthy, np.zeros_like(truth)),
        ):
            image = as_image(volume, "MR")
            told = []
            for mode in MODES:
                mask = model.segment(image, "brain tumour", ZeroShotOptions(volume=mode)).labels > 0
                counted = lesion_counts(mask, true)
                lesions = f"{counted.found} of {counted.true} found, {counted.false} false"
                told.append(f"{mode} Dice {dice(mask, true):.3f}, {lesions}")
            print(f"MR {seed} {name:<10}{'   '.join(told)}", flush=True)


def times(model: ZeroShot, given: argparse.Namespace) -> None:
    """Seconds of both ways on one volume, and memory in processes of their own."""
    image, masks = phantom("CT", FIRST_SEED, given.planes, given.size)
    truth = masks["lungs"]
    model.segment(MedicalImage.from_array(np.zeros((64, 64), np.uint8)), "lungs")  # warms up
    seconds = {}
    for mode in reversed(MODES):
        model.forget_images()
        first: list[float] = []
        start, work = time.perf_counter(), time.process_time()
        result = model.segment(
            image,
            "lungs",
            ZeroShotOptions(volume=mode),
            keep_partial=lambda name, plane, mask, first=first, start=start: first.append(time.perf_counter() - start),
        )
        seconds[mode], work = time.perf_counter() - start, time.process_time() - work
        print(
            f"{mode:<12}{given.planes} planes of {given.size} pixels: {seconds[mode]:.1f} s ({work:.1f} s of processor "
            f"time), first mask after {first[0]:.1f} s, Dice {dice(result.labels > 0, truth):.3f}; {result.seconds}",
            flush=True,
        )
    print(f"propagate takes {seconds['propagate'] / seconds['planes']:.2f} of the time of planes", flush=True)
    # in processes of their own, which did not make the volumes: what making them took is not measured
    for planes in (given.planes // 4, given.planes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "phantom.nii"
            stack, _ = make_volume("CT", FIRST_SEED, planes, size=given.size, raw=True)
            write(stack, "CT", path)
            command = [sys.executable, __file__, "memory", str(path), "--weights", given.weights]
            subprocess.run([*command, "--device", given.device], check=True)


def memory(model: ZeroShot, path: Path) -> None:
    """Print the peak of the resident memory, without that of the volume."""
    image = read_image(path, modality="CT")
    Path("/proc/self/clear_refs").write_text("5")
    model.segment(image, "lungs")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak, volume = int(line.split()[1]) / 1024, image.voxels().nbytes / 2**20
    print(
        f"{image.n_planes} planes: peak {peak:.0f} MiB, of which the volume {volume:.0f} MiB, beyond it "
        f"{peak - volume:.0f} MiB"
    )


if __name__ == "__main__":
    main()
