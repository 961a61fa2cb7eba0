"""The command `medclipsam`: segment, serve, evaluate, train, finetune, doctor, demo, weights, targets.

Bad input is one line on standard error and exit code 2; an absent target is an empty mask, a sentence and exit code 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam import __version__
from medclipsam.active.command import add_rounds
from medclipsam.errors import InputError, MedClipSamError
from medclipsam.extras import missing_extra
from medclipsam.finetune import command as finetune_command
from medclipsam.options import CHOICES, SALIENCY_METHODS, ZeroShotOptions
from medclipsam.server.backup import add_workspace
from medclipsam.server.base.addresses import hide_passwords
from medclipsam.server.base.settings import add_flags, join_values, settings_of
from medclipsam.server.base.workspace import default_workspace
from medclipsam.training.command import add_train
from medclipsam.weights import default_pair

if TYPE_CHECKING:
    from medclipsam.zeroshot import ZeroShot

# What `segment` has written to a folder: a line for each mask.
_RECORD = ".masks.tsv"
MASK_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")

_OPTION_HELP = {
    "saliency": "saliency method",
    "preset": "where beta, variance and layer come from",
    "beta": "M2IB's trade-off",
    "variance": "M2IB's noise variance",
    "layer": "vision block of the bottleneck, from 0",
    "steps": "optimisation steps",
    "samples": "noise samples a step",
    "seed": "seed of noise and points",
    "contrast": "weight of the similarity to negative captions",
    "fit": "how a plane becomes the encoder's square input",
    "presence": "true or false: ask first whether the target is there",
    "presence_threshold": "below it the mask is empty (default: calibrated for the weights)",
    "postprocess": "saliency map to coarse mask",
    "threshold": "for postprocess threshold",
    "num_components": "how many largest components are kept",
    "min_size": "smallest component in pixels",
    "visual_prompt": "what SAM is given",
    "box_per_component": "true or false: a box for each component",
    "num_points": "points inside the coarse mask",
    "negative_points": "points outside it",
    "voting": "how SAM's candidates become one mask",
    "planes": 'planes of a volume, from 0: "7", "3-9"',
}


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line and exit code 2."""

    def error(self, message: str) -> Any:
        print(f"medclipsam: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv[1:]` by default.

    Returns
    -------
    int
        Exit code: 0, 2 for bad input, 1 where the doctor finds something that fails.
    """
    if arguments is None:
        hide_passwords()
    parsed = _parser().parse_args(join_values(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(parsed.run(parsed) or 0)
    except MedClipSamError as error:
        print(f"medclipsam: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(f"medclipsam: {missing}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medclipsam: stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="medclipsam", description="Text-driven segmentation of medical images. Research use only.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

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
    segment.add_argument("--out", required=True, type=Path, help="mask file; a folder for several images")
    segment.add_argument("--overlay", type=Path, help="picture of the mask on the image (PNG); a folder for several")
    segment.add_argument("--report", type=Path, help="evidence as JSON; a folder for several images")
    segment.add_argument(
        "--suffix", choices=MASK_SUFFIXES, default=".nii.gz", help="mask format where --out is a folder"
    )
    segment.add_argument(
        "--skip-existing",
        action="store_true",
        help="with folders: keep masks already written for the same image, text, options and weights",
    )
    segment.add_argument("--modality", help="DICOM modality of images that do not say (PNG, NIfTI): US, MR, CR, CT ...")
    _add_model_arguments(segment)
    _add_pipeline_options(segment)
    segment.set_defaults(run=_segment)

    serve = commands.add_parser("serve", help="start the MONAI Label server")
    add_flags(serve)
    serve.set_defaults(run=_serve)

    doctor = commands.add_parser("doctor", help="say what stands in the way of serving, and what to do")
    doctor.add_argument("--studies", help="folder of images, or a DICOMweb URL, to look at as well")
    doctor.add_argument("--workspace", type=Path, help="where the server would write")
    doctor.add_argument("--weights", default=default_pair(), help="pair of weights (default: %(default)s)")
    doctor.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)

    _add_evaluate(commands)
    add_train(commands, default_workspace)
    add_rounds(commands, default_workspace)
    add_workspace(commands, default_workspace)

    demo = commands.add_parser("demo", help="make phantoms to try things on")
    made = demo.add_subparsers(dest="action", required=True, parser_class=_Parser)
    data = made.add_parser("data", help="write phantoms with masks in the layout that `evaluate` reads")
    data.add_argument("--out", required=True, type=Path, metavar="DIR", help="data folder")
    data.add_argument(
        "--images", type=int, default=10, help="of each modality, with its finding (default: %(default)s)"
    )
    data.add_argument("--absent", type=int, help="further ones without the finding (default: half as many)")
    data.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    data.add_argument("--seed", type=int, help="seed of the first phantom (default: one for each split)")
    data.add_argument(
        "--renderer",
        default="phantoms",
        help="phantoms, or polygons unlike those the demo learned from (default: %(default)s)",
    )
    data.set_defaults(run=_demo_data)

    weights = commands.add_parser("weights", help="list, fetch and verify model weights")
    actions = weights.add_subparsers(dest="action", required=True, parser_class=_Parser)
    actions.add_parser("list", help="what is known and what is here").set_defaults(run=_weights_list)
    fetch = actions.add_parser("fetch", help="download weights by name")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="names in `weights list`")
    fetch.set_defaults(run=_weights_fetch)
    verify = actions.add_parser("verify", help="check the hashes of weights")
    verify.add_argument("names", nargs="*", metavar="NAME", help="all that are here by default")
    verify.set_defaults(run=_weights_verify)
    add = actions.add_parser("add", help="give weights of your own a name")
    add.add_argument("name", metavar="NAME", help="name to use with --weights")
    add.add_argument("source", metavar="DIR", help="open_clip folder, SAM checkpoint, or a model in the demo's format")
    add.set_defaults(run=_weights_add)
    convert = actions.add_parser("convert", help="make an open_clip folder of a fine-tuned BiomedCLIP's checkpoint")
    convert.add_argument("source", type=Path, metavar="FILE|DIR", help="pytorch_model.bin, or open_clip's epoch_N.pt")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="the new folder")
    convert.add_argument(
        "--like", default="biomedclip", help="weights whose configuration and tokenizer are taken over (%(default)s)"
    )
    convert.set_defaults(run=_weights_convert)

    finetune_command.add_commands(commands, _device, default_workspace)

    targets = commands.add_parser("targets", help="list what can be asked for by name")
    targets.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    targets.set_defaults(run=_targets)
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure masks against the truth")
    actions = evaluate.add_subparsers(dest="action", required=True, parser_class=_Parser)
    run = actions.add_parser("run", help="measure a data folder; an interrupted run goes on where it was")
    run.add_argument(
        "data", type=Path, metavar="DATA", help="folder in the paper's layout, or studies with final labels"
    )
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="the run's folder")
    run.add_argument(
        "--protocol", choices=("A", "B"), default="B", help="A: prompts from a file; B: one a task (default)"
    )
    run.add_argument("--prompts", type=Path, metavar="FILE", help="protocol A: JSON with a text for each image")
    run.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    run.add_argument("--tasks", action="append", default=[], metavar="NAME", help="this task only; may be repeated")
    run.add_argument("--tasks-file", type=Path, metavar="FILE", help="instead of DATA/tasks.yaml")
    run.add_argument("--limit", type=int, metavar="N", help="draw N images of each folder by the seed (default: all)")
    run.add_argument(
        "--label-map",
        action="append",
        default=[],
        metavar="VALUE=NAME|FILE",
        help="names of values in final labels saved without names: 1=heart (may be repeated), or a YAML or JSON file",
    )
    run.add_argument("--sensitivity", action="store_true", help="measure what wrong, other and nonsense texts do too")
    run.add_argument(
        "--ladder",
        nargs="?",
        const=",".join(SALIENCY_METHODS),
        metavar="METHOD[,METHOD]",
        help="measure the pipeline stage by stage too, for these saliency methods (default: all)",
    )
    run.add_argument("--sam", action="append", default=[], metavar="NAME", help="further SAM weights on the ladder")
    run.add_argument(
        "--search", action="store_true", help="protocol A: search settings on validation images with masks"
    )
    run.add_argument("--search-images", type=int, default=3, metavar="N", help="how many of a task (default: 3)")
    run.add_argument(
        "--network", type=Path, metavar="DIR", help="measure the trained network in this folder, not the pipeline"
    )
    run.add_argument("--draws", type=int, default=2000, help="bootstrap samples (default: %(default)s)")
    run.add_argument("--restart", action="store_true", help="throw away what an earlier run left in --out")
    _add_model_arguments(run)
    _add_pipeline_options(run)
    run.set_defaults(run=_evaluate)
    pair = actions.add_parser("compare", help="hold two runs against each other, image by image")
    pair.add_argument("a", type=Path, metavar="A", help="folder of a run")
    pair.add_argument("b", type=Path, metavar="B", help="folder of another")
    pair.add_argument("--out", type=Path, metavar="DIR", help="write comparison.md and comparison.json there")
    pair.add_argument("--draws", type=int, default=2000, help="bootstrap samples (default: %(default)s)")
    pair.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    pair.set_defaults(run=_compare)
    convert = actions.add_parser("convert", help="bring a public set into the paper's layout")
    convert.add_argument("set", help="busi, udiat, brain-figshare, covid-qu-ex or chest-ct")
    convert.add_argument("source", type=Path, metavar="FOLDER", help="its unpacked download")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="data folder")
    convert.add_argument("--seed", type=int, default=0, help="of splits that are drawn (default: %(default)s)")
    convert.set_defaults(run=_convert)


def _add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of the pipeline")
    for field in dataclasses.fields(ZeroShotOptions):
        default = "auto" if field.default is None else field.default
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            choices=CHOICES.get(field.name),
            metavar=None if field.name in CHOICES else "VALUE",
            help=f"{_OPTION_HELP[field.name]} (default: {default})",
        )


def _pipeline_options(given: argparse.Namespace) -> ZeroShotOptions:
    chosen = {field.name: getattr(given, field.name) for field in dataclasses.fields(ZeroShotOptions)}
    return ZeroShotOptions.from_mapping({key: value for key, value in chosen.items() if value is not None})


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default=default_pair(), help="pair in `weights list` (default: %(default)s)")
    parser.add_argument("--targets-file", type=Path, action="append", default=[], help="your own targets (YAML)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def _segment(given: argparse.Namespace) -> int:
    # The quick checks come before the imports that take seconds.
    options = _pipeline_options(given)
    for path in given.images:
        if not path.exists():
            raise InputError(f"There is no image {path}.")
    from medclipsam.server.inference.request_schema import checked_modality
    from medclipsam.targets import joined_text, parse_prompt

    known = _target_set(given.targets_file)
    given.modality = checked_modality(given.modality, {each for target in known for each in target.modality})
    given.text = joined_text(given.text)
    parse_prompt(given.text, given.modality, known)
    jobs = _jobs(given)

    from medclipsam.progress import ProgressBar
    from medclipsam.zeroshot import ZeroShot

    if given.skip_existing and len(jobs) == 1:
        raise InputError("--skip-existing is for several images; there is only one.")
    pipeline = ZeroShot.load(given.weights, device=_device(given.device), targets=known)
    several = len(jobs) > 1
    settings = _settings(pipeline, given, options)
    if given.skip_existing:
        before, made = len(jobs), _read_record(given.out)
        jobs = [(source, files) for source, files in jobs if not _is_done(source, files, settings, made, given.out)]
        print(f"{before - len(jobs)} of {before} images were done already.")
    failed = 0
    with ProgressBar(jobs, unit="image", show=several) as bar:
        for source, files in bar:
            try:
                digest = _digest(source, settings)
                sentence = _segment_one(pipeline, source, files, given, options, show=not several)
                if several:
                    _record(given.out, files["out"], digest)
            except MedClipSamError as error:
                if not several:
                    raise
                failed += 1
                ProgressBar.write(f"medclipsam: {error}", file=sys.stderr)
                continue
            ProgressBar.write(sentence if not several else f"{source}: {sentence}", file=sys.stdout)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images could not be segmented; the others are done.")
    return 0


def _settings(pipeline: ZeroShot, given: argparse.Namespace, options: ZeroShotOptions) -> str:
    """Return everything that the mask of an image depends on beside the image, as text."""
    targets = [hashlib.sha256(file.read_bytes()).hexdigest() for file in given.targets_file]
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

    if not all(path.is_file() for path in files.values()):
        return False
    if made.get(files["out"].relative_to(folder).as_posix()) != _digest(source, settings):
        return False
    try:
        read_image(files["out"])
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
        if not given.out.name.endswith(MASK_SUFFIXES):
            raise InputError(f"The mask cannot be written as {given.out.name!r}; allowed: {', '.join(MASK_SUFFIXES)}.")
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
) -> str:
    from medclipsam.imaging import read_image, write_mask, write_overlay
    from medclipsam.progress import ProgressBar

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
                write_mask(result.labels, image, partial)
            elif kind == "overlay":
                write_overlay(result.labels, image, result.label_names, partial, window=result.window)
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
    return result.sentence


def _evaluate(given: argparse.Namespace) -> int:
    options = _pipeline_options(given)
    from medclipsam.evaluation.command import Request, evaluate
    from medclipsam.training.collect import read_label_map

    print(
        evaluate(
            Request(
                data=given.data,
                out=given.out,
                protocol=given.protocol,
                prompts=given.prompts,
                split=given.split,
                tasks=tuple(given.tasks),
                tasks_file=given.tasks_file,
                limit=given.limit,
                label_map=read_label_map(given.label_map),
                search=given.search,
                network=given.network,
                search_images=given.search_images,
                ladder=tuple(part.strip() for part in (given.ladder or "").split(",") if part.strip()),
                sams=tuple(given.sam),
                sensitivity=given.sensitivity,
                draws=given.draws,
                restart=given.restart,
                weights=given.weights,
                device=_device(given.device),
                targets_files=tuple(given.targets_file),
                options=options,
            ),
            show=True,
        )
    )
    return 0


def _compare(given: argparse.Namespace) -> int:
    from medclipsam.evaluation.compare import compare

    print(compare(given.a, given.b, out=given.out, draws=given.draws, seed=given.seed))
    return 0


def _convert(given: argparse.Namespace) -> int:
    from medclipsam.evaluation.convert import convert

    counts = convert(given.set, given.source, given.out, seed=given.seed, show=True)
    print(f"{given.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0


def _demo_data(given: argparse.Namespace) -> int:
    from medclipsam.demo.data import write_data

    file = write_data(
        given.out,
        given.images,
        absent=given.absent,
        seed=given.seed,
        split=given.split,
        renderer=given.renderer,
        show=True,
    )
    print(f"{file}: measure with medclipsam evaluate run {given.out} --split {given.split} --out results")
    return 0


def _serve(given: argparse.Namespace) -> int:
    from medclipsam.server.serve import serve

    settings = settings_of(given)
    conf = dict(settings.conf)
    serve(
        settings.studies,
        host=settings.host,
        port=settings.port,
        workspace=settings.workspace,
        weights=conf.pop("weights", None),
        warm_up=settings.warm_up,
        conf=conf,
        token_file=settings.token_file,
        certificate=settings.certificate,
        behind_proxy=settings.behind_proxy,
        insecure=settings.insecure,
        oidc=settings.oidc,
    )
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from medclipsam.server.doctor import examine, passed, report, report_json

    checks = examine(studies=given.studies, workspace=given.workspace, weights=given.weights, device=given.device)
    print(report_json(checks) if given.json else report(checks))
    return 0 if passed(checks) else 1


def _weights_list(given: argparse.Namespace) -> int:
    from medclipsam.weights import available, format_table, weights_home

    print(format_table(available()))
    print(f"\nFolder: {weights_home()} (MEDCLIPSAM_WEIGHTS names another)")
    return 0


def _weights_fetch(given: argparse.Namespace) -> int:
    from medclipsam.weights import fetch

    for name in given.names:
        for folder in fetch(name):
            print(f"{name}: {folder}")
    return 0


def _weights_verify(given: argparse.Namespace) -> int:
    from medclipsam.weights import available, verify

    for name in given.names or [row.name for row in available() if row.state in ("in package", "present")]:
        for file in verify(name):
            print(f"{name}: {file.path} {file.sha256} ({file.against})")
    return 0


def _weights_add(given: argparse.Namespace) -> int:
    from medclipsam.weights import add

    print(f"{given.name}: {add(given.name, given.source)}")
    return 0


def _weights_convert(given: argparse.Namespace) -> int:
    from medclipsam.encoders.transformers_layout import convert
    from medclipsam.weights import resolve

    like = resolve(given.like)
    if not like.path.is_dir():
        raise InputError(f"Weights {given.like!r} are no open_clip folder whose configuration could be taken over.")
    print(f"{convert(given.source, like.path, given.out)}")
    return 0


def _targets(given: argparse.Namespace) -> int:
    known = _target_set(given.targets_file)
    for name in known.names():
        target = known.get(name)
        print(f"{target.label:>4}  {name:<24} {'/'.join(target.modality) or 'any':<10} {target.captions[0]}")
    return 0


def _target_set(files: Iterable[Path]) -> Any:
    from medclipsam.targets import TargetSet

    return TargetSet.load(*files)


def _device(asked: str | None) -> str:
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"The device {asked!r} cannot be used here; allowed: cpu, or cuda where torch sees a GPU."
        ) from None
    return asked


def _stem(name: str) -> str:
    for suffix in (".nii.gz", *{Path(name).suffix}):
        if suffix and name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


if __name__ == "__main__":
    raise SystemExit(main())
