"""The checkpoint ensemble: its file, and its prediction on an image, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from medclipsam.base.engine import compile_forward
from medclipsam.base.errors import CancelledError, OptionError, TrainingError
from medclipsam.base.files import atomic_write
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.masks import flatten, mask_of
from medclipsam.training.examples import PreparedImage
from medclipsam.training.network import FinestLevel, Network, to_probabilities
from medclipsam.training.plan import PLAN_FILE, Plan
from medclipsam.training.uncertainty import (
    METHODS,
    Moments,
    boundary_length,
    class_entropies,
    expected_dice_loss,
    image_score,
    multilabel_welch,
    total_entropy,
    welch,
)

ENSEMBLE_FILE = "ensemble.safetensors"
# Bytes that a prediction may take beside the network: planes are worked on in groups that fit.
MEMORY = 1 << 30
_OVERLAP = 0.5
# Planes that go through the network together.
_SIDE_BY_SIDE = 8
# Of the memory of a prediction, what members that stay in memory may take.
_MEMBERS_SHARE = 1 / 8

# Mean probability above which a pixel is in a class that may overlap others.
_THRESHOLD = 0.5

# Windows [B, C, h, w] to the finest level's logits [B, outputs, h, w].
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class NetworkResult:
    """What an ensemble says about an image.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 [n_planes, H, W], display orientation; values are class indices. Where classes overlap, that of the
        smaller one.
    uncertainty : numpy.ndarray or None
        float32 [n_planes, H, W]. For several classes "class_entropy" is the greatest of the classes' entropies.
    probabilities : numpy.ndarray or None
        float16 [n_planes, classes + 1, H, W]: the members' mean, where it was asked for. For classes that may overlap
        the first, of the background, is 1 minus the greatest of the others.
    scores : dict of str to float
        How much Dice each class's mask is expected to lack, by its name, and "image", the mean over the classes; see
        `uncertainty.expected_dice_loss`. The same whichever map is made; empty without one.
    boundary_scores : dict of str to float
        The published score of each class and of all together: see `uncertainty.image_score`. A class has the score of
        its own entropy map and mask, or of the one map with its mask for the other methods.
    plane_scores : numpy.ndarray or None
        float64 [n_planes]: "image" of `scores` for each plane on its own.
    beneath : numpy.ndarray
        uint8 [n_layers, n_planes, H, W]: where classes overlap, those that `labels` covers; no layers where none do.
    """

    labels: np.ndarray
    uncertainty: np.ndarray | None
    probabilities: np.ndarray | None = None
    scores: dict[str, float] = field(default_factory=dict)
    boundary_scores: dict[str, float] = field(default_factory=dict)
    plane_scores: np.ndarray | None = None
    beneath: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8))

    @property
    def layers(self) -> np.ndarray:
        """`labels` and `beneath`, uint8 [1 + n_layers, n_planes, H, W]."""
        return np.stack([self.labels, *self.beneath]) if len(self.beneath) else self.labels[None]

    def mask(self, index: int) -> np.ndarray:
        """Return where a class is, bool [n_planes, H, W]: on top or beneath another one."""
        return mask_of(index, self.labels, self.beneath)

    def class_probabilities(self, index: int) -> np.ndarray:
        """Return the probabilities of a class, float32 [n_planes, H, W] in [0, 1], where they were asked for."""
        assert self.probabilities is not None
        # of float16, sums may exceed 1
        return self.probabilities[:, index].astype(np.float32).clip(0, 1)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.labels.shape))
        scores = ", ".join(f"{name}: {score:.3g}" for name, score in self.scores.items())
        return f"<NetworkResult: {np.count_nonzero(self.labels)} voxels, scores {scores or 'none'}; labels {size}>"


class Ensemble:
    """The members of one training, which predict together.

    Made by `Ensemble.load`. The members stay in memory where they take little of what a prediction may take; else
    their weights stay in their file and are brought one member at a time.

    Parameters
    ----------
    folder : pathlib.Path
        Holds `plan.json` and `ensemble.safetensors`.
    plan : Plan
        What it was trained as.
    identity : str
        SHA-256 of weights and plan.
    members : int
        Number of checkpoints.
    device : torch.device
        Where it runs.
    memory : int
        Bytes that a prediction may take beside the network.
    """

    def __init__(
        self, folder: Path, plan: Plan, identity: str, members: int, device: torch.device, memory: int = MEMORY
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.identity = identity
        self.members = members
        self.device = device
        self.memory = memory
        self._network = Network(plan).to(device).eval()
        self._kept: dict[int, Forward] = {}
        self._keeps = members * sum(each.nbytes for each in self._network.parameters()) <= memory * _MEMBERS_SHARE

    @classmethod
    def load(cls, folder: Path, *, device: str | None = None, memory: int | None = None) -> Ensemble:
        """Load an ensemble.

        Parameters
        ----------
        folder : pathlib.Path
            Holds `plan.json` and `ensemble.safetensors`.
        device : str, optional
            By default the GPU where there is one.
        memory : int, optional
            Bytes that a prediction may take beside the network; 1 GiB by default.

        Raises
        ------
        TrainingError
            If there is none, it is damaged, or weights and plan do not belong together.
        """
        from safetensors import SafetensorError, safe_open

        plan = Plan.read(folder)
        path = folder / ENSEMBLE_FILE
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
            identity = hashlib.sha256((folder / PLAN_FILE).read_bytes())
            with open(path, "rb") as content:
                while block := content.read(1 << 20):
                    identity.update(block)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{folder} holds no network: {ENSEMBLE_FILE} cannot be read ({error}).") from error
        members = 1 + max((int(name.split(".", 1)[0]) for name in names), default=-1)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        made = cls(folder, plan, identity.hexdigest(), members, where, memory or MEMORY)
        wanted = {f"{index}.{key}" for index in range(members) for key in made._network.state_dict()}
        if not members or names != wanted:
            raise TrainingError(f"The weights in {folder} are not those of its plan.")
        return made

    @torch.inference_mode()
    def predict(
        self,
        image: MedicalImage,
        *,
        mirror: bool = False,
        small_parts: bool = False,
        uncertainty: str = "class_entropy",
        members: int | None = None,
        probabilities: bool = False,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NetworkResult:
        """Segment an image.

        Parameters
        ----------
        image : MedicalImage
        mirror : bool
            Average over mirrored inputs too, along the axes that training mirrored.
        small_parts : bool
            Whether connected parts of a mask, plane by plane, stay that are less than half as large as nearly all of
            its class in training.
        uncertainty : {"class_entropy", "total_entropy", "welch", "none"}
            Which map is made.
        members : int, optional
            Only the last so many checkpoints; all by default.
        probabilities : bool
            Whether the mean probabilities are returned.
        progress : callable, optional
            Called with the share that is done, and what is being done.
        cancelled : callable, optional
            Asked between members; True stops the work.

        Raises
        ------
        InputError
            If the image is of another kind than the network was trained on.
        OptionError
            If an option is not allowed.
        CancelledError
            If it was stopped.
        TrainingError
            If memory runs out.
        """
        if uncertainty not in METHODS:
            raise OptionError("uncertainty", uncertainty, "one of " + ", ".join(METHODS))
        if members is not None and not 1 <= members <= self.members:
            raise OptionError("members", members, f"a whole number from 1 to {self.members}")
        chosen = range(self.members - (members or self.members), self.members)
        if uncertainty == "welch" and len(chosen) < 2:
            raise OptionError("uncertainty", "welch", "class_entropy or total_entropy for one member")
        prepared = PreparedImage(image, self.plan)
        made = _Collected(self.plan, image, uncertainty, probabilities, small_parts)
        group = self._group(prepared, uncertainty)
        total = len(chosen) * -(-image.n_planes // group)
        done = 0
        try:
            for start in range(0, image.n_planes, group):
                planes = list(range(start, min(start + group, image.n_planes)))
                inputs = torch.stack([prepared.plane(index) for index in planes])
                moments = Moments(variance=uncertainty == "welch")
                for member in chosen:
                    if cancelled is not None and cancelled():
                        raise CancelledError("The request was cancelled.")
                    moments.add(self._probabilities(self._member(member), inputs, mirror))
                    done += 1
                    if progress is not None:
                        progress(done / total, f"network, plane {planes[-1] + 1} of {image.n_planes}")
                for place, index in enumerate(planes):
                    made.add(index, prepared, moments, place)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error):
                raise TrainingError(
                    f"Memory ran out on {self.device} while predicting planes of {prepared.shape}: load the network "
                    f"with less than {self.memory / 1e9:.1f} GB for predictions, or free some."
                ) from error
            raise
        return made.result()

    def _member(self, index: int) -> Forward:
        """Return a member; it may be the same network for every member, with other weights."""
        if index in self._kept:
            return self._kept[index]
        network = Network(self.plan).to(self.device).eval() if self._keeps else self._network
        network.load_state_dict(self.weights(index))
        finest = FinestLevel(network).eval()
        if not self._keeps:
            return finest
        window = torch.zeros(1, self.plan.channels, *self.plan.patch_size)
        name = f"member {index + 1} of {self.folder.name}"
        # not kept on the disk, since the next training replaces it
        self._kept[index] = compile_forward(finest, (window,), None, name=name, device=self.device)
        return self._kept[index]

    def _probabilities(self, network: Forward, inputs: torch.Tensor, mirror: bool) -> np.ndarray:
        """Return a member's probabilities of some planes, float32 [n, outputs, h, w]."""
        half = self.device.type == "cuda"
        flips = _flips(self.plan.mirror_axes) if mirror else [()]
        made = []
        for planes in inputs.split(_SIDE_BY_SIDE):
            x = planes.to(self.device)
            total = torch.zeros(())
            for axes in flips:
                logits = sliding_logits(network, x.flip(axes) if axes else x, self.plan, half=half)
                total = total.to(self.device) + to_probabilities(logits, multilabel=self.plan.multilabel).flip(axes)
            made.append((total / len(flips)).cpu().numpy())
        return np.concatenate(made)

    def weights(self, member: int) -> dict[str, torch.Tensor]:
        """Return the weights of one member, 0-based, as float32."""
        from safetensors import safe_open

        with safe_open(self.folder / ENSEMBLE_FILE, framework="pt") as file:
            return {name: file.get_tensor(f"{member}.{name}").float() for name in self._network.state_dict()}

    def _group(self, prepared: PreparedImage, uncertainty: str) -> int:
        """Return how many planes fit the memory together."""
        rows, columns = prepared.shape
        copies = (3 if uncertainty == "welch" else 2) + 1
        each = 4 * rows * columns * (self.plan.channels + copies * (self.plan.n_classes + 1))
        return int(max(1, min(prepared.n_planes, self.memory // each)))


class _Collected:
    """Results of the planes of an image, on its own pixels."""

    def __init__(self, plan: Plan, image: MedicalImage, method: str, probabilities: bool, small_parts: bool) -> None:
        shape = image.plane_shape
        self.small_parts = small_parts
        self.plan, self.method = plan, method
        self.image = image
        self.labels = np.zeros((image.n_planes, *shape), dtype=np.uint8)
        # which of classes that overlap is on top is known at the end
        overlapping = plan.n_classes if plan.multilabel else 0
        self.masks = np.zeros((overlapping, image.n_planes, *shape), dtype=bool)
        self.map = None if method == "none" else np.zeros((image.n_planes, *shape), dtype=np.float32)
        self.probabilities = (
            np.zeros((image.n_planes, plan.n_classes + 1, *shape), dtype=np.float16) if probabilities else None
        )
        # of each class, plane by plane: the map's sum; and what `expected_dice_loss` is made of
        self.sums = np.zeros((image.n_planes, plan.n_classes + 1))
        self.terms = np.zeros((image.n_planes, plan.n_classes + 1, 3))

    def add(self, index: int, prepared: PreparedImage, moments: Moments, place: int) -> None:
        assert moments.mean is not None
        mean = prepared.restore(torch.from_numpy(moments.mean[place])).numpy()
        multilabel = self.plan.multilabel
        classes = mean if multilabel else mean[1:]
        masks = decided_masks(mean, self.plan, above=_THRESHOLD)
        region = self.image.valid_region(index)
        if region is not None:
            masks &= region
        if not self.small_parts:
            self._drop_small_parts(masks)
        if multilabel:
            self.masks[:, index] = masks
        else:
            for value, mask in enumerate(masks, start=1):
                self.labels[index][mask] = value
        if self.probabilities is not None:
            self.probabilities[index] = np.stack([1 - mean.max(axis=0), *mean]) if multilabel else mean
        if self.map is None:
            return
        if self.method == "class_entropy":
            entropies = class_entropies(classes)
            self.map[index] = entropies.max(axis=0)
        elif self.method == "total_entropy":
            self.map[index] = class_entropies(classes).sum(axis=0) if multilabel else total_entropy(mean)
        else:
            test = multilabel_welch if multilabel else welch
            values = test(moments.mean[place], moments.variance[place], moments.count)
            self.map[index] = np.clip(prepared.restore(torch.from_numpy(values)).numpy(), 0, 1)
        if region is not None:
            self.map[index][~region] = 0
        for value, mask in enumerate(masks, start=1):
            own = entropies[value - 1] if self.method == "class_entropy" else self.map[index]
            self.sums[index, value] = float(own.sum(dtype=np.float64))
            guess = classes[value - 1] if region is None else classes[value - 1] * region
            self.terms[index, value] = guess.sum(dtype=np.float64), guess[mask].sum(dtype=np.float64), mask.sum()

    def _drop_small_parts(self, masks: np.ndarray) -> None:
        for name, value in self.plan.classes.items():
            mask = masks[value - 1]
            parts, _ = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())
            small = sizes < self.plan.fingerprint["classes"][name]["small_part"] * mask.size
            small[0] = False
            mask[small[parts]] = False

    def result(self) -> NetworkResult:
        labels, beneath = self.labels, np.zeros((0, *self.labels.shape), np.uint8)
        if self.plan.multilabel:
            labels, beneath = flatten(enumerate(self.masks, start=1), labels.shape)
        if self.map is None:
            return NetworkResult(labels, None, self.probabilities, beneath=beneath)
        boundary = {"image": image_score(self.map, labels > 0)}
        for name, value in self.plan.classes.items():
            length = boundary_length(self.masks[value - 1] if self.plan.multilabel else labels == value)
            boundary[name] = float(self.sums[:, value].sum() / max(length, 1))
        scores = self._expected_losses(self.terms.sum(axis=0), "share_of_image", labels.size)
        scores["image"] = float(np.mean(list(scores.values())))
        planes = [list(self._expected_losses(part, "share_of_plane", labels[0].size).values()) for part in self.terms]
        return NetworkResult(
            labels, self.map, self.probabilities, scores, boundary, np.asarray(planes).mean(axis=1), beneath
        )

    def _expected_losses(self, terms: np.ndarray, share: str, pixels: int) -> dict[str, float]:
        found = self.plan.fingerprint["classes"]
        scores = {}
        for name, value in self.plan.classes.items():
            mass, inside, marked = (float(term) for term in terms[value])
            # a class that no training image holds is as large as a pixel
            scores[name] = expected_dice_loss(mass, inside, marked, max(found[name][share] * pixels, 1.0))
        return scores


def decided_masks(outputs: np.ndarray, plan: Plan, *, above: float) -> np.ndarray:
    """Return the mask of each class that outputs of a network come to.

    Parameters
    ----------
    outputs : numpy.ndarray
        Logits or probabilities of a plane, float [outputs, h, w].
    plan : Plan
    above : float
        What the output of a class that may overlap others must be greater than: 0.5 of a probability, 0 of a logit.

    Returns
    -------
    numpy.ndarray
        bool [classes, h, w]. Of classes that do not overlap a pixel is in that of the greatest output.
    """
    if plan.multilabel:
        return outputs > above
    masks: np.ndarray = outputs.argmax(axis=0) == np.arange(1, plan.n_classes + 1)[:, None, None]
    return masks


def sliding_logits(network: Forward, x: torch.Tensor, plan: Plan, *, half: bool = False) -> torch.Tensor:
    """Return the finest level's logits of planes of any size: windows of the plan's patch, blended by a Gaussian.

    Parameters
    ----------
    network : callable
        Windows to logits, such as a `FinestLevel` in evaluation mode.
    x : torch.Tensor
        float [B, C, h, w].
    plan : Plan
    half : bool
        Mixed precision, on CUDA.

    Returns
    -------
    torch.Tensor
        float32 [B, outputs, h, w].
    """
    from monai.inferers import sliding_window_inference

    with torch.autocast(x.device.type, dtype=torch.float16, enabled=half):
        logits = sliding_window_inference(x, plan.patch_size, 4, network, overlap=_OVERLAP, mode="gaussian")
    return torch.as_tensor(logits).float()


def write_members(states: Sequence[Mapping[str, torch.Tensor]], path: Path) -> None:
    """Write weights of members in 16 bits as one file, whole or not at all.

    A file of several holds the names "0.<name>", "1.<name>", ...; one of a single member its plain names.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for index, state in enumerate(states):
        for name, tensor in state.items():
            key = f"{index}.{name}" if path.name == ENSEMBLE_FILE else name
            tensors[key] = tensor.detach().to("cpu", torch.float16).contiguous()
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the axes of [B, C, h, w] to flip for every combination of mirrored axes."""
    made: list[tuple[int, ...]] = [()]
    for axis in axes:
        made += [(*flips, axis - 2) for flips in made]
    return made
