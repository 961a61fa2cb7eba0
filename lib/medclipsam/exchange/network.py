"""A trained network that leaves: as a MONAI bundle, as ONNX, and with a model card."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medclipsam import __version__
from medclipsam.base.errors import InputError, StorageError
from medclipsam.base.extras import MissingExtraError
from medclipsam.imaging import read_image
from medclipsam.imaging.dicom_seg import TISSUE, SegmentationKind, SegmentInfo, write_segmentation
from medclipsam.imaging.label_map import LabelMap
from medclipsam.imaging.write import DISK_FULL, replace_file
from medclipsam.targets import TargetSet
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble
from medclipsam.training.network import FinestLevel, Network
from medclipsam.training.plan import PLAN_FILE
from medclipsam.training.store import Network as StoredNetwork

_LABELS_FILE, _CARD, _ONNX = "labels.json", "docs/README.md", "models/model.onnx"
# A file of protocol buffers holds no more.
_MAX_ONNX = 1_900_000_000
_PACKAGES = ("monai", "torch", "numpy", "nibabel", "safetensors")
_NOT_A_DEVICE = "For research use only. This is not a medical device."


def export_bundle(
    network: StoredNetwork, out: Path, *, onnx: bool = False, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a trained network as a MONAI bundle.

    Parameters
    ----------
    network : medclipsam.training.store.Network
        Of a workspace.
    out : Path
        The bundle's folder, which must not be there; it appears when it is complete.
    onnx : bool
        Whether the bundle holds the network as ONNX too.
    facts : mapping, optional
        What the rounds came to, see `medclipsam.active.summary.summarise`; for the model card.

    Returns
    -------
    Path
        The folder. `python -m monai.bundle run` with its `configs/inference.json` draws the mask that the server draws;
        it needs this package, which the bundle's metadata name.

    Raises
    ------
    InputError
        If the folder is there already, or its parent is not.
    TrainingError
        If the network's files are damaged.
    StorageError
        If the disk is full.
    """
    if out.exists():
        raise InputError(f"{out} is there already; name a new folder.")
    if not out.parent.is_dir():
        raise InputError(f"The folder {out.parent} of {out.name!r} does not exist.")
    ensemble = Ensemble.load(network.folder, device="cpu")
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            root = Path(temporary) / "bundle"
            for folder in ("configs", "models", "docs"):
                (root / folder).mkdir(parents=True)
            for name in (PLAN_FILE, ENSEMBLE_FILE):
                shutil.copyfile(network.folder / name, root / "models" / name)
            _write(root / "models" / _LABELS_FILE, {"labels": network.labels, "classes": network.classes})
            _write(root / "configs" / "inference.json", _inference())
            _write(root / "configs" / "metadata.json", _metadata(network, ensemble))
            (root / _CARD).write_text(model_card(network, facts), encoding="utf-8")
            if onnx:
                export_onnx(network, root / _ONNX)
            root.rename(out)
    except OSError as error:
        sentence = f"{out} cannot be written: {error.strerror or error}."
        raise StorageError(sentence, full=error.errno in DISK_FULL) from error
    return out


def export_onnx(network: StoredNetwork, path: Path) -> Path:
    """Write a trained network as ONNX, and run it once to compare it with the network.

    Parameters
    ----------
    network : medclipsam.training.store.Network
    path : Path
        Ends in .onnx. Its input `image` is float32 [batch, channels, rows, columns] of the plan's patch size, resampled
        and normalised as the plan says; its output `logits` is float32 [members, batch, outputs, rows, columns]. Where
        the plan says that its classes may overlap (`multilabel`), the outputs are the classes, and the mask of each is
        where the mean over the members of the sigmoid is above 0.5. Else they are background and classes, and the mask
        is the greatest of the mean over the members of the softmax. Plan and labels are in its metadata as JSON.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the name has another ending, the network is too large for a file of ONNX, or the file, run by ONNX Runtime
        where it is installed, differs from the network.
    MissingExtraError
        If onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise MissingExtraError("onnx", "ONNX") from None
    if path.suffix.lower() != ".onnx":
        raise InputError(f"A network cannot be written as {path.name!r}; allowed: .onnx.")
    ensemble = Ensemble.load(network.folder, device="cpu")
    plan = ensemble.plan
    members = []
    for index in range(ensemble.members):
        member = Network(plan)
        member.load_state_dict(ensemble.weights(index))
        members.append(FinestLevel(member))
    every = _Members(members).eval()
    size = sum(parameter.nbytes for parameter in every.parameters())
    if size > _MAX_ONNX:
        raise InputError(
            f"The network has {size / 1e9:.1f} GB of weights; an ONNX file holds {_MAX_ONNX / 1e9:.1f} GB."
        )
    example = torch.randn(2, plan.channels, *plan.patch_size, generator=torch.Generator().manual_seed(0))

    def write(temporary: Path) -> None:
        torch.onnx.export(
            every,
            (example,),
            str(temporary),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {1: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        model = onnx.load(str(temporary))
        about = {"plan": asdict(plan), "labels": network.labels, "identity": network.identity, "version": __version__}
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
        onnx.checker.check_model(model)
        onnx.save(model, str(temporary))
        _check_runs(temporary, every, example)

    replace_file(path, ".onnx", write)
    return path


class _Members(nn.Module):
    """All members of an ensemble: logits [members, B, outputs, h, w]."""

    def __init__(self, members: list[FinestLevel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x) for member in self.members])


def _check_runs(path: Path, network: nn.Module, example: torch.Tensor) -> None:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (example, example[:1]):
        (found,) = session.run(None, {"image": batch.numpy()})
        with torch.no_grad():
            meant = network(batch).numpy()
        if not np.allclose(found, meant, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(meant).max()))):
            raise InputError(f"{path.name} gives other values than the network when it is run; it is not kept.")


def segment(
    models: str,
    image: str,
    output: str,
    modality: str | None = None,
    device: str | None = None,
    seg_type: SegmentationKind = "FRACTIONAL",
) -> Path:
    """Draw the mask of a bundle's network on an image; what `configs/inference.json` calls.

    Parameters
    ----------
    models : str
        The bundle's folder `models`.
    image : str
        File or series folder.
    output : str
        The mask: .nii.gz, .nii, .nrrd or .png, which hold one class of each pixel, the smaller one where classes
        overlap; .seg.nrrd, which holds them whole; or .dcm, a DICOM SEG, for an image that is DICOM.
    modality : str, optional
        DICOM modality, where the file does not say it.
    device : str, optional
        By default the GPU where there is one.
    seg_type : {"FRACTIONAL", "BINARY", "LABELMAP"}
        Kind of a DICOM SEG; FRACTIONAL holds the probabilities of the classes.

    Raises
    ------
    InputError
        If the image or the names cannot be read, or the mask cannot be written so.
    TrainingError
        If the network is damaged.
    """
    folder = Path(models)
    if not image:
        raise InputError("No image is named; give one with --image.")
    try:
        named = json.loads((folder / _LABELS_FILE).read_text(encoding="utf-8"))
        table = np.zeros(256, np.uint8)
        for name, index in named["classes"].items():
            table[index] = named["labels"][name]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder / _LABELS_FILE} does not name the network's classes: {error!r}.") from error
    read = read_image(image, modality=modality)
    as_seg = Path(output).suffix.lower() == ".dcm"
    fractions = as_seg and seg_type == "FRACTIONAL"
    found = Ensemble.load(folder, device=device).predict(read, uncertainty="none", probabilities=fractions)
    label = LabelMap(table[found.labels], read, named["labels"], named["labels"], table[found.beneath])
    if not as_seg:
        return label.write(output, overlaps="smaller-on-top")
    known = {target.name: target.code for target in TargetSet.load()}
    segments = [
        SegmentInfo(name, label, known.get(name) or TISSUE, "AUTOMATIC", "checkpoint ensemble")
        for name, label in named["labels"].items()
    ]
    drawn: np.ndarray | dict[int, np.ndarray] = label.values
    if label.overlaps:
        drawn = {number: label.mask_of(number) for number in named["labels"].values()}
    if found.probabilities is not None:
        drawn = {named["labels"][name]: found.class_probabilities(index) for name, index in named["classes"].items()}
    write_segmentation(drawn, read, segments, output, kind=seg_type)
    return Path(output)


def model_card(network: StoredNetwork, facts: Mapping[str, Any] | None = None) -> str:
    """Return a model card in Markdown, of what is known of a network.

    Parameters
    ----------
    network : medclipsam.training.store.Network
    facts : mapping, optional
        What the rounds came to, see `medclipsam.active.summary.summarise`.
    """
    data, verdict = network.data, network.metrics.get("verdict") or {}
    training = data.get("training") or {}
    made = time.strftime("%Y-%m-%d", time.gmtime(network.created))
    lines = [
        f"# {network.name}, version {network.version}",
        "",
        f"A segmentation network of {', '.join(network.labels)}. {_NOT_A_DEVICE}",
        "",
        "## What it is",
        "",
        f"- Trained by medclipsam {__version__} on {made} (UTC); status: {network.status}. {network.reason}",
        f"- Images: {network.modality or 'of several modalities, or of one that they do not say'}",
        f"- Labels: {', '.join(f'{name} = {value}' for name, value in network.labels.items())}",
        f"- SHA-256 of weights and plan: `{network.identity}`",
        "",
        "## Training data",
        "",
        f"- Labels that a person has saved: {training.get('final', 'not known')}",
        f"- Pseudo-labels: {training.get('original', 'not known')}",
        f"- Validation images, of patients that were never trained on: {data.get('validation', 'not known')}",
        *[f"- Left out: {count} ({reason})" for reason, count in (data.get("left_out") or {}).items()],
        f"- SHA-256 of images and labels: `{data.get('hash', 'not known')}`",
    ]
    if facts:
        agreement = facts.get("agreement") or {}
        dice = agreement.get("dice")
        lines += [
            f"- Images with a label that stands, at the time of the export: {facts.get('labelled', 'not known')}, by "
            f"{len(facts.get('by_reader') or {})} readers; approved by reviewers: {facts.get('approved', 0)}",
            "- Agreement of readers of one image: "
            + ("not known" if dice is None else f"mean Dice {dice:.3f} over {agreement.get('pairs')} pairs"),
        ]
    lines += ["", "## What it scored on the validation images", ""]
    scored = {key: value for key, value in verdict.items() if isinstance(value, (int, float, str)) and value != ""}
    lines += [
        f"- {key}: {value:.3f}" if isinstance(value, float) else f"- {key}: {value}" for key, value in scored.items()
    ]
    lines += [] if scored else ["Nothing is known: it was not validated."]
    lines += [
        "",
        "## Limits",
        "",
        "- It draws its labels on any image: whether a structure is there, and whether the image is of the kind that "
        "it was trained on, is for the user to decide.",
        "- The figures are those of the validation images alone. Measure it on your own images first.",
        "",
        "## Training options",
        "",
        "```json",
        json.dumps(network.options, indent=2, default=str),
        "```",
        "",
    ]
    return "\n".join(lines)


def _inference() -> dict[str, Any]:
    return {
        "imports": ["$from medclipsam.exchange.network import segment"],
        "bundle_root": ".",
        "image": "",
        "output": "mask.nii.gz",
        "modality": None,
        "device": None,
        "seg_type": "FRACTIONAL",
        "run": ["$segment(@bundle_root + '/models', @image, @output, @modality, @device, @seg_type)"],
    }


def _metadata(network: StoredNetwork, ensemble: Ensemble) -> dict[str, Any]:
    plan = ensemble.plan
    rows, columns = plan.patch_size
    names = [name for name, _ in sorted(network.classes.items(), key=lambda each: each[1])]
    outputs = dict(enumerate(names if plan.multilabel else ["background", *names]))
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": f"{network.version}.0.0",
        "changelog": {f"{network.version}.0.0": network.reason},
        **{f"{name}_version": importlib.metadata.version(name) for name in ("monai", "numpy")},
        "pytorch_version": importlib.metadata.version("torch"),
        "required_packages_version": {
            "medclipsam": __version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "name": network.name,
        "task": f"Segmentation of {', '.join(network.labels)}",
        "description": f"A checkpoint ensemble of {ensemble.members} 2-D networks. {_NOT_A_DEVICE}",
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "intended_use": _NOT_A_DEVICE,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": network.modality or "image",
                    "modality": network.modality or "any",
                    "num_channels": plan.channels,
                    "spatial_shape": [rows, columns],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(n): name for n, name in enumerate("RGB" if plan.channels == 3 else ["image"])},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": plan.n_outputs,
                    "spatial_shape": [rows, columns],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(index): name for index, name in outputs.items()},
                }
            },
        },
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
