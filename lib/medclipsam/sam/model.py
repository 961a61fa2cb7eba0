"""One frozen SAM: embed a plane once, decode prompts on it many times."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from medclipsam.base.engine import compile_forward
from medclipsam.base.errors import InputError, OptionError, WeightsError
from medclipsam.base.options import VOTINGS
from medclipsam.sam.build import BOXES_ONLY, PREPROCESSINGS, load_weights, preprocessing_of, speed_up
from medclipsam.sam.cache import Embedding, EmbeddingCache
from medclipsam.sam.sam2_adapter import Sam2
from medclipsam.sam.segment_anything_adapter import Sam
from medclipsam.sam.voting import vote

if TYPE_CHECKING:
    from medclipsam.weights import ResolvedWeights


# Logit of a pixel that a mask prompt holds, and its negative for one that it does not.
_SURE = 10.0
# Room that a box made from points has around them, as a share of the plane's longer side.
_ROOM = 0.08


@dataclass(frozen=True)
class MaskResult:
    """What SAM answers to one prompt.

    Parameters
    ----------
    mask : ndarray
        bool, shape [H, W] of the plane.
    score : float
        The overlap (IoU) that SAM predicts for its mask; the mean over boxes. A regression: it may lie a little
        outside [0, 1].
    probability : ndarray
        float32, shape [H, W]: the probability that the vote decided on; the greatest over boxes.
    """

    mask: np.ndarray
    score: float
    probability: np.ndarray


class SamModel:
    """A SAM that answers prompts in pixels of the plane; safe to use from several threads.

    Parameters
    ----------
    sam : Sam or Sam2
        The network. It is frozen, put into eval mode and moved to `device`.
    identity : str
        What tells these weights from all others: the file's SHA-256.
    preprocessing : {"sam", "medsam", "lite_medsam", "sam2"}
        How a plane becomes the encoder's input. "sam": longest side to the input size (bilinear, antialiased),
        normalised by the model's mean and standard deviation, padded with zeros at right and bottom. "medsam": the
        plane is stretched to the input square (bicubic) and min-max scaled to [0, 1], as MedSAM was trained.
        "lite_medsam": longest side to the input size (mean over each pixel's area, rounded to uint8), min-max scaled
        to [0, 1] over all channels together, padded with zeros at right and bottom, as LiteMedSAM was published.
        "sam2": the plane is stretched to the input square (bilinear, antialiased) and normalised as for "sam".
    device : str or torch.device
        Where the network runs.
    cache : EmbeddingCache or None
        Where embeddings are kept; None makes one of 512 MiB.
    mask_prompts : bool
        Whether the weights were trained with masks as prompts. Without that a mask only disturbs: `decode` then
        refuses one.
    point_prompts : bool
        Whether the weights were trained with points as prompts. Without that a point spoils the mask of a good box, and
        points alone give almost empty masks: `decode` then uses points only to make a box where none is given.
    engine : {"auto", "torch", "openvino", "openvino-bf16"}, optional
        What runs the image encoder on a CPU, see `medclipsam.base.engine`.

    Attributes
    ----------
    prepare : Preparation
        Plane -> the encoder's input; can be sent to worker processes.
    encoder : callable
        The image encoder, float [1, 3, S, S] to [1, C, h, w]: `network.image_encoder`, by the chosen engine.
    encoder_runs : int
        How often the image encoder has run.

    Notes
    -----
    LiteMedSAM's embedding of a plane of H x W pixels is [1, 256, 64, 64] for an input square of 256 pixels. The plane
    fills its top left part of `Embedding.input_shape` = (round(H * 256 / max(H, W)), round(W * 256 / max(H, W)))
    pixels (at least 1), four input pixels to a cell of the embedding: cell (r, c) is centred on the plane's
    (row, column) = ((4 r + 2) * H / input_shape[0] - 0.5, (4 c + 2) * W / input_shape[1] - 0.5), where pixel centres
    are whole numbers. The rest of the square is padding, zeros in an input whose values span [0, 1].
    """

    def __init__(
        self,
        sam: Sam | Sam2,
        *,
        identity: str,
        preprocessing: str = "sam",
        device: str | torch.device = "cpu",
        cache: EmbeddingCache | None = None,
        mask_prompts: bool = False,
        point_prompts: bool = True,
        engine: str | None = None,
    ) -> None:
        if preprocessing not in PREPROCESSINGS:
            raise WeightsError(
                f"There is no SAM preprocessing {preprocessing!r}; allowed: {', '.join(PREPROCESSINGS)}."
            )
        self.device = torch.device(device)
        self.network = sam.eval().requires_grad_(False).to(self.device)
        self.identity = identity
        self.preprocessing = preprocessing
        self.mask_prompts = mask_prompts
        self.point_prompts = point_prompts
        self.cache = EmbeddingCache() if cache is None else cache
        self.encoder_runs = 0
        mean, deviation = (tuple(float(v) for v in part.flatten()) for part in (sam.pixel_mean, sam.pixel_std))
        self.prepare = Preparation(preprocessing, self.image_size, mean, deviation)
        self.encoder = compile_forward(
            self.network.image_encoder,
            (torch.zeros(1, 3, self.image_size, self.image_size),),
            f"{identity}:image_encoder",
            name=f"SAM image encoder {identity[:8]}",
            device=self.device,
            engine=engine,
        )
        self._encoding = threading.Lock()

    @classmethod
    def from_weights(
        cls,
        weights: ResolvedWeights,
        *,
        device: str | torch.device = "cpu",
        cache: EmbeddingCache | None = None,
        engine: str | None = None,
    ) -> SamModel:
        """Load resolved weights (see `medclipsam.weights.resolve`); their SHA-256 is the identity.

        Raises
        ------
        WeightsError
            As `load_sam`, or if the weights are not of kind "sam".
        """
        if weights.kind != "sam":
            raise WeightsError(f"Weights {weights.name!r} are of kind {weights.kind!r}; SAM needs kind 'sam'.")
        return load_sam(weights.path, weights.arch, identity=weights.sha256, device=device, cache=cache, engine=engine)

    @property
    def image_size(self) -> int:
        """Side of the encoder's square input in pixels."""
        return self.network.image_encoder.img_size

    @property
    def image_encoder(self) -> nn.Module:
        """The frozen network from inputs [B, 3, size, size] to embeddings [B, C, h, w]."""
        return self.network.image_encoder

    def embed(self, plane: np.ndarray) -> Embedding:
        """Return the image embedding of a plane, from the cache where it is there.

        Parameters
        ----------
        plane : ndarray
            uint8, shape [H, W, 3], RGB in display orientation.

        Raises
        ------
        InputError
            If `plane` is not a non-empty uint8 array [H, W, 3].
        """
        plane = np.asarray(plane)
        if plane.dtype != np.uint8 or plane.ndim != 3 or plane.shape[2] != 3 or 0 in plane.shape:
            raise InputError(
                f"SAM cannot embed an array of type {plane.dtype} and shape {list(plane.shape)}; "
                "allowed: a plane of type uint8 and shape [H, W, 3]."
            )
        height, width, _ = plane.shape
        content = hashlib.sha256(f"{height}x{width}:".encode() + np.ascontiguousarray(plane).tobytes()).hexdigest()
        key = (content, self.identity, f"{self.preprocessing}-{self.image_size}")
        found = self.cache.get(key)
        if found is None:
            # One plane at a time: whoever waited for the same plane then finds it. Hits never wait here.
            with self._encoding:
                found = self.cache.get(key)
                if found is None:
                    found = self._encode(plane)
                    self.cache.put(key, found)
        return found

    @torch.inference_mode()
    def _encode(self, plane: np.ndarray) -> Embedding:
        pixels, input_shape = self.prepare(plane)
        self.encoder_runs += 1
        features = self.encoder(pixels[None].to(self.device))
        return Embedding(features, (plane.shape[0], plane.shape[1]), input_shape)

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        boxes: np.ndarray | None = None,
        points: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        *,
        mask: np.ndarray | None = None,
        voting: str = "single",
    ) -> MaskResult:
        """Segment what boxes and points prompt; several boxes give the union of their masks.

        Coordinates are pixels of the plane, x to the right, y down, (0, 0) the centre of the first pixel.

        Parameters
        ----------
        embedding : Embedding
            Of `embed`.
        boxes : array_like or None
            Shape [K, 4], each [x0, y0, x1, y1], x1 and y1 inclusive: a box one pixel wide has x0 = x1.
        points : array_like or None
            Shape [K, 2], each (x, y). With one box or none all of them make one prompt. With several boxes a
            positive point goes to the boxes it lies in and a negative one to all. Weights that were trained with
            boxes alone see the boxes only; where there are none, the box around the positive points, with a margin.
        point_labels : array_like or None
            Shape [K], 1 for a point inside the structure and 0 for one outside; None means all inside.
        mask : array_like or None
            bool, shape [H, W] of the plane: the present mask, which boxes and points are to mend.
        voting : {"single", "mrm", "staple", "average"}
            See `medclipsam.sam.vote`; all but "single" ask SAM for three candidates. MedSAM was fine-tuned for
            "single" and boxes only.

        Raises
        ------
        InputError
            If there is no prompt, or boxes or points are of a wrong shape, not finite, outside the plane or in no
            box; or there are only negative points, for weights that were not trained with points; or a mask is of
            another shape, or given to weights that were not trained with masks.
        OptionError
            If `voting` is unknown.
        """
        if voting not in VOTINGS:
            raise OptionError("voting", voting, "one of " + ", ".join(VOTINGS))
        box_array = None if boxes is None or len(boxes) == 0 else _checked_boxes(boxes, embedding.plane_shape)
        point_array, labels = _checked_points(points, point_labels, embedding.plane_shape)
        if box_array is None and not len(point_array):
            raise InputError("SAM was given neither boxes nor points; at least one of either is needed.")

        if not self.point_prompts and len(point_array):
            if box_array is None:
                box_array = _box_around(point_array[labels == 1], embedding.plane_shape)
            point_array, labels = point_array[:0], labels[:0]
        prompts: list[tuple[np.ndarray | None, np.ndarray, np.ndarray]]
        if box_array is None or len(box_array) == 1 or not len(point_array):
            prompts = [(box_array, point_array, labels)]
        else:
            prompts = _points_by_box(box_array, point_array, labels)
        features = embedding.features.to(self.device)
        dense = None if mask is None else self._mask_logits(mask, embedding)

        union = torch.zeros(embedding.plane_shape, dtype=torch.bool, device=self.device)
        probability = torch.zeros(embedding.plane_shape, device=self.device)
        scores: list[float] = []
        for some_boxes, some_points, some_labels in prompts:
            low_resolution, predicted = self._predict(
                features, embedding, some_boxes, some_points, some_labels, dense, multimask=voting != "single"
            )
            # One box after the other: at full resolution the candidates of many boxes would not fit.
            for logits, candidate_scores in zip(low_resolution, predicted, strict=True):
                full = self.network.postprocess_masks(logits[None], embedding.input_shape, embedding.plane_shape)[0]
                voted_mask, voted_probability, score = vote(full, candidate_scores, voting)
                union |= voted_mask
                probability = torch.maximum(probability, voted_probability)
                scores.append(score)
        return MaskResult(union.cpu().numpy(), float(np.mean(scores)), probability.cpu().numpy())

    def _predict(
        self,
        features: torch.Tensor,
        embedding: Embedding,
        boxes: np.ndarray | None,
        points: np.ndarray,
        labels: np.ndarray,
        mask: torch.Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return low-resolution logits [K, M, h, w] and scores [K, M] of K boxes, or of one set of points (K = 1)."""
        point_prompt = box_prompt = None
        if len(points):
            coordinates = self._to_input(points, embedding)[None]
            point_prompt = (coordinates, torch.as_tensor(labels, dtype=torch.int, device=self.device)[None])
        if boxes is not None:
            box_prompt = self._to_input(boxes.reshape(-1, 2), embedding).reshape(-1, 4)
        sparse, dense = self.network.prompt_encoder(points=point_prompt, boxes=box_prompt, masks=mask)
        return self.network.mask_decoder(
            image_embeddings=features,
            image_pe=self.network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )

    def _mask_logits(self, mask: np.ndarray, embedding: Embedding) -> torch.Tensor:
        """Return a mask as SAM takes it: logits [1, 1, h, w] of its low-resolution output, padded like the input."""
        mask = np.asarray(mask)
        if not self.mask_prompts:
            raise InputError("These SAM weights were not trained with masks as prompts; give boxes or points.")
        if mask.shape != embedding.plane_shape or mask.dtype != np.bool_:
            raise InputError(
                f"SAM cannot use a mask of type {mask.dtype} and shape {list(mask.shape)}; allowed: bool of shape "
                f"{list(embedding.plane_shape)}."
            )
        (height, width), size = embedding.input_shape, self.image_size
        share = torch.from_numpy(mask.astype(np.float32)).to(self.device)[None, None]
        share = F.interpolate(share, (height, width), mode="bilinear", antialias=True)
        share = F.pad(share, (0, size - width, 0, size - height))
        low = self.network.prompt_encoder.mask_input_size
        return (F.interpolate(share, low, mode="bilinear", antialias=True) - 0.5) * (2 * _SURE)

    def _to_input(self, coordinates: np.ndarray, embedding: Embedding) -> torch.Tensor:
        """Scale (x, y) of the plane to the encoder's input, the way `SamPredictor` does."""
        (height, width), (input_height, input_width) = embedding.plane_shape, embedding.input_shape
        scaled = coordinates * np.array([input_width / width, input_height / height])
        return torch.as_tensor(scaled, dtype=torch.float, device=self.device)


def load_sam(
    path: Path,
    arch: str | Mapping[str, Any],
    *,
    identity: str,
    device: str | torch.device = "cpu",
    cache: EmbeddingCache | None = None,
    engine: str | None = None,
) -> SamModel:
    """Load a SAM from a checkpoint file, frozen.

    Parameters
    ----------
    path : Path
        `.safetensors`, or a PyTorch checkpoint as Meta or MedSAM publish it (read without running its pickle).
    arch : str or mapping
        The architecture, one of `SAM_NAMES`; see `build_sam` for a mapping's keys. "medsam" is a vit_b with MedSAM's
        preprocessing.
    identity : str
        What tells these weights from all others in cache keys and reports: the file's SHA-256.
    device : str or torch.device
        Where the network runs.
    cache : EmbeddingCache or None
        A cache to share among models; None makes one of 512 MiB.
    engine : {"auto", "torch", "openvino", "openvino-bf16"}, optional
        What runs the image encoder on a CPU, see `SamModel`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, holds something else, or holds another architecture; or the architecture is
        unknown.
    """
    sam = load_weights(Path(path), arch)
    speed_up(sam)
    boxes_only = arch in BOXES_ONLY
    return SamModel(
        sam,
        identity=identity,
        preprocessing=preprocessing_of(arch),
        device=device,
        cache=cache,
        mask_prompts=not boxes_only if isinstance(arch, str) else bool(arch.get("mask_prompts", False)),
        point_prompts=not boxes_only,
        engine=engine,
    )


@dataclass(frozen=True)
class Preparation:
    """Plane -> input of an image encoder.

    Parameters
    ----------
    preprocessing : {"sam", "medsam", "lite_medsam", "sam2"}
        See `SamModel`.
    size : int
        Side of the square input in pixels.
    mean, deviation : tuple of float
        Of the three channels, on the 0-255 scale; used by "sam" and "sam2".
    """

    preprocessing: str
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return float32 [3, size, size] and the (H, W) of the plane at its top left, for uint8 [H, W, 3]."""
        if self.preprocessing == "medsam":
            return _stretched(plane, self.size), (self.size, self.size)
        if self.preprocessing == "lite_medsam":
            return _fitted(plane, self.size)
        mean, deviation = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.deviation))
        if self.preprocessing == "sam2":
            whole = torch.from_numpy(np.ascontiguousarray(plane)).permute(2, 0, 1)[None].float()
            square = F.interpolate(whole, (self.size, self.size), mode="bilinear", antialias=True)
            return (square[0] - mean) / deviation, (self.size, self.size)
        rows, columns = _longest_side(plane, self.size)
        smaller = Image.fromarray(plane).resize((columns, rows), Image.Resampling.BILINEAR)
        resized = torch.from_numpy(np.array(smaller)).permute(2, 0, 1)
        height, width = resized.shape[1:]
        padded = F.pad((resized - mean) / deviation, (0, self.size - width, 0, self.size - height))
        return padded, (height, width)


def _longest_side(plane: np.ndarray, size: int) -> tuple[int, int]:
    """Return the (H, W) at which a plane's longer side has `size` pixels."""
    scale = size / max(plane.shape[:2])
    height, width = (max(1, int(side * scale + 0.5)) for side in plane.shape[:2])
    return height, width


def _stretched(plane: np.ndarray, size: int) -> torch.Tensor:
    """Return MedSAM's input, float [3, size, size] in [0, 1]."""
    pixels = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = (pixels - pixels.min()) / max(float(pixels.max() - pixels.min()), 1e-8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _fitted(plane: np.ndarray, size: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return LiteMedSAM's input, float [3, size, size] in [0, 1], and the (H, W) of the plane in it."""
    height, width = _longest_side(plane, size)
    rows, columns = _area_weights(plane.shape[0], height), _area_weights(plane.shape[1], width)
    resized = np.rint(np.einsum("hy,yxc,wx->hwc", rows, plane, columns, optimize=True)).astype(np.float32)
    resized = (resized - resized.min()) / max(float(resized.max() - resized.min()), 1e-8)
    padded = np.pad(resized, ((0, size - height), (0, size - width), (0, 0)))
    return torch.from_numpy(padded).permute(2, 0, 1), (height, width)


def _area_weights(source: int, target: int) -> np.ndarray:
    """Return float32 [target, source]: the share that each source pixel has in the extent of each target pixel."""
    edges = np.linspace(0, source, target + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(source)
    overlap = np.minimum(right, pixels + 1) - np.maximum(left, pixels)
    return (np.clip(overlap, 0, None) / (right - left)).astype(np.float32)


def _checked_boxes(boxes: Any, plane_shape: tuple[int, int]) -> np.ndarray:
    array = _numbers("boxes", boxes, 4)
    height, width = plane_shape
    x0, y0, x1, y1 = array.T
    inside = (x0 >= 0) & (y0 >= 0) & (x0 <= x1) & (y0 <= y1) & (x1 <= width - 1) & (y1 <= height - 1)
    if not inside.all():
        raise InputError(
            f"The box {array[~inside][0].tolist()} is reversed or leaves the plane of {width} x {height} pixels; "
            f"allowed: [x0, y0, x1, y1] with 0 <= x0 <= x1 <= {width - 1} and 0 <= y0 <= y1 <= {height - 1}."
        )
    return array


def _checked_points(points: Any, point_labels: Any, plane_shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    if points is None or len(points) == 0:
        if point_labels is not None and len(point_labels):
            raise InputError(f"SAM was given {len(point_labels)} point labels and no points.")
        return np.zeros((0, 2)), np.zeros(0, dtype=int)
    array = _numbers("points", points, 2)
    height, width = plane_shape
    inside = ((array >= 0) & (array <= (width - 1, height - 1))).all(axis=1)
    if not inside.all():
        raise InputError(
            f"The point {array[~inside][0].tolist()} leaves the plane of {width} x {height} pixels; "
            f"allowed: (x, y) with 0 <= x <= {width - 1} and 0 <= y <= {height - 1}."
        )
    labels = np.ones(len(array), dtype=int) if point_labels is None else np.asarray(point_labels)
    if labels.shape != (len(array),) or not np.isin(labels, (0, 1)).all():
        raise InputError(
            f"Point labels {labels.tolist()} do not fit {len(array)} points; allowed: 1 (inside) or 0 for each."
        )
    return array, labels.astype(int)


def _box_around(points: np.ndarray, plane_shape: tuple[int, int]) -> np.ndarray:
    """Return the box [1, 4] around positive points (x, y), with a margin, inside the plane."""
    if not len(points):
        raise InputError("These SAM weights were trained with boxes alone; give a box or a point inside the structure.")
    height, width = plane_shape
    room = _ROOM * max(height, width)
    low, high = points.min(axis=0) - room, points.max(axis=0) + room
    return np.concatenate([np.maximum(low, 0), np.minimum(high, (width - 1, height - 1))])[None]


def _numbers(what: str, values: Any, columns: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"SAM's {what} are not an array of numbers of shape [K, {columns}].") from None
    if array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
        raise InputError(
            f"SAM cannot use {what} of shape {list(array.shape)}; allowed: finite numbers of shape [K, {columns}]."
        )
    return array


def _points_by_box(
    boxes: np.ndarray, points: np.ndarray, labels: np.ndarray
) -> list[tuple[np.ndarray | None, np.ndarray, np.ndarray]]:
    """Give every box its own points: the positive ones inside it and all negative ones."""
    x, y = points.T
    x0, y0, x1, y1 = boxes.T[:, :, None]
    inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    stray = (labels == 1) & ~inside.any(axis=0)
    if stray.any():
        raise InputError(f"The point {points[stray][0].tolist()} lies in none of the {len(boxes)} boxes.")
    chosen = inside | (labels == 0)
    return [(box[None], points[own], labels[own]) for box, own in zip(boxes, chosen, strict=True)]
