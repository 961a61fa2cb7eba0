"""The infer task of trained networks: served as soon as one is published, also by another process."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import InputError, TrainingError
from medclipsam.base.options import Options, option
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.sizes import area_mm2, doubt_of_size, size_in_words, volume_mm3
from medclipsam.measurements import measure
from medclipsam.server.base.errors import BusyError, ConflictError, UnknownError
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.inference.infer_request import Envelope, InferRequest, shared_fields, task_options
from medclipsam.server.inference.last_masks import LastMasks
from medclipsam.server.inference.model_task import Made, ModelTask, Opened
from medclipsam.server.inference.pipeline import out_of_memory
from medclipsam.server.inference.request_schema import MODALITIES
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.images import ImageReader
from medclipsam.targets import Target, TargetSet
from medclipsam.training.ensemble import Ensemble, NetworkResult
from medclipsam.training.plan import Plan
from medclipsam.training.selection import image_kind
from medclipsam.training.store import Network, NetworkStore

logger = logging.getLogger(__name__)


class NetworkOptions(Options):
    """Options of one request to a trained network. None stands for "auto"."""

    mirror: bool = option(False, "Average over mirrored inputs too, as far as training mirrored")
    small_parts: bool = option(
        False, "Keep parts of a mask that are smaller than half of nearly all (95 %) in training"
    )
    uncertainty: Literal["class_entropy", "total_entropy", "welch", "none"] = option(
        "class_entropy", "Uncertainty map that is made; welch is a t-test across the checkpoints"
    )
    members: int | None = option(None, "Number of last checkpoints that are used (auto: all)", 1, 10_000)
    memory: int | None = option(
        None,
        'Memory that the prediction may take beside the network, also as "200 MB" (auto: 1 GiB)',
        50 * 10**6,
        10**13,
        unit="bytes",
    )
    unvalidated: bool = option(False, "Use the newest network that could not be validated")


@dataclass(frozen=True, kw_only=True)
class NetworkRequest(InferRequest):
    """One checked request to a trained network: beside the rest, how to predict."""

    options: NetworkOptions

    @classmethod
    def from_params(cls, params: Mapping[str, Any], envelope: Envelope) -> NetworkRequest:
        """Check the params of a client.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or not allowed.
        """
        shared = shared_fields(params, envelope)
        own = NetworkOptions.options().keys()
        return cls(options=NetworkOptions.from_mapping(task_options(params, own)), **shared)


class SharedNetworks:
    """The networks of a workspace, of which the one that was used last stays loaded.

    Parameters
    ----------
    store : NetworkStore
        Where they are published.
    device : str or None
        As for the other models.
    """

    def __init__(self, store: NetworkStore, device: str | None) -> None:
        self.store = store
        self._device = device
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[Path, int | None], Ensemble] | None = None

    def served(self, name: str) -> Network | None:
        """Return the network whose labels clients are told: the published one, else the newest unvalidated one."""
        return self.store.current(name) or self.store.newest(name)

    def chosen(self, name: str, *, unvalidated: bool = False) -> Network:
        """Return the network that a request means.

        Raises
        ------
        UnknownError
            If there is none of that name.
        ConflictError
            If there is none of the kind that is asked for.
        """
        current = None if unvalidated else self.store.current(name)
        if current is not None:
            return current
        newest = self.store.newest(name)
        if newest is None and unvalidated and self.store.current(name) is not None:
            raise ConflictError(f"No network {name!r} is unvalidated; leave the option unvalidated out.")
        if newest is None:
            raise UnknownError(f"No network {name!r} has been published yet.")
        if unvalidated:
            return newest
        raise ConflictError(
            f"Network {name!r} has not been validated ({newest.reason.rstrip('.')}); set the option unvalidated to use "
            f"version {newest.version} all the same."
        )

    def predict(
        self, network: Network, image: MedicalImage, options: NetworkOptions, job: Job | None = None
    ) -> NetworkResult:
        """Predict; `job` gets the progress and may stop it.

        Raises
        ------
        BusyError
            If memory ran out.
        """
        with self._lock:
            try:
                return self._ensemble(network, options.memory).predict(
                    image,
                    mirror=options.mirror,
                    small_parts=options.small_parts,
                    uncertainty=options.uncertainty,
                    members=options.members,
                    progress=job.progress if job else None,
                    cancelled=job.stopped if job else None,
                )
            except TrainingError as error:
                if error.__cause__ is None or not out_of_memory(error.__cause__):
                    raise
                self._loaded = None
        raise BusyError(
            "The network ran out of memory on this request; ask with a smaller memory (such as 200 MB) or fewer "
            "members, or ask again later.",
            30,
        )

    def release(self) -> None:
        """Drop what is loaded, in favour of another process."""
        with self._lock:
            self._loaded = None

    def _ensemble(self, network: Network, memory: int | None) -> Ensemble:
        key = (network.folder, memory)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = key, Ensemble.load(network.folder, device=self._device, memory=memory)
        return self._loaded[1]


class NetworkTask(ModelTask[NetworkRequest]):
    """Segment with a trained network.

    Parameters
    ----------
    name : str
        Name of the network, which is the model's.
    networks : SharedNetworks
        The workspace's networks.
    targets : TargetSet
        Known targets: which of them are findings, and how large they can be.
    images : ImageReader
        Reads the images.
    masks : LastMasks
        Where the masks that clients are given are kept for `refine`.
    evidence : EvidenceStore
        Where uncertainty maps are kept for a while.
    """

    def __init__(
        self,
        name: str,
        networks: SharedNetworks,
        targets: TargetSet,
        *,
        images: ImageReader,
        masks: LastMasks,
        evidence: EvidenceStore,
    ) -> None:
        super().__init__(
            images=images,
            masks=masks,
            description="",
            type="segmentation",
            labels={},
            config={"modality": ["auto", *MODALITIES], **NetworkOptions.form()},
        )
        self._name = name
        self._networks = networks
        self._targets = {target.name: target for target in targets}
        self._evidence = evidence

    def is_valid(self) -> bool:
        """Whether a network has been published, be it as unvalidated."""
        return self._networks.served(self._name) is not None

    def info(self) -> dict[str, Any]:
        """Return what clients are told: the labels of the network that is served now."""
        network = self._networks.served(self._name)
        if network is not None:
            self.labels = dict(network.labels)
            state = "" if network.status != "unvalidated" else ", not validated"
            self.description = f"Segments: {', '.join(network.labels)} (network version {network.version}{state})"
        return dict(super().info())

    def request(self, params: Mapping[str, Any], envelope: Envelope) -> NetworkRequest:
        """Return the checked request, see `NetworkRequest.from_params`.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        UnknownError, ConflictError
            If there is no such network.
        """
        checked = NetworkRequest.from_params(params, envelope)
        self._network(checked)
        return checked

    def _network(self, request: NetworkRequest) -> Network:
        return self._networks.chosen(self._name, unvalidated=request.options.unvalidated)

    def _open(self, request: NetworkRequest, path: Path) -> Opened:
        """Read the image; as the network's own modality where neither the file nor the request says one."""
        opened, network = super()._open(request, path), self._network(request)
        if opened.image.modality is None and network.modality is not None:
            opened = self._read(request, path, network.modality)
        return opened

    def _work(self, request: NetworkRequest, opened: Opened, job: Job | None) -> Made:
        image, options, network = opened.image, request.options, self._network(request)
        if network.modality is not None and image_kind(image.modality) != network.modality:
            raise InputError(
                f"The network {network.name!r} was trained on {network.modality}, and the image is {image.modality}."
            )
        begun = time.perf_counter()
        result = self._networks.predict(network, image, options, job)
        predicted = round(time.perf_counter() - begun, 3)
        labels = _as_labels(result.labels, network)
        weights = {"network": {"name": f"{network.name} version {network.version}", "sha256": network.identity}}
        targets = [
            _target(name, label, result.mask(network.classes[name]), image, result, self._targets.get(name))
            for name, label in network.labels.items()
        ]
        params = {
            "sentence": " ".join(target["reason"] for target in targets),
            "targets": targets,
            "uncertainty": {
                "method": options.uncertainty,
                "score": result.scores.get("image"),
                "planes": result.plane_scores,
                "evidence": self._keep(result, labels, network, opened, options),
            },
            "network": {
                "name": network.name,
                "version": network.version,
                "status": network.status,
                "dice": network.metrics.get("verdict", {}).get("child"),
            },
            "weights": weights,
            "options": options.to_dict(),
            "image": image.describe(),
            "version": __version__,
        }
        origin = {"model": self._name, "weights": weights}
        beneath = _as_labels(result.beneath, network)
        return Made(labels, dict(network.labels), params, origin, {"network": predicted}, beneath=beneath)

    def _keep(
        self, result: NetworkResult, labels: np.ndarray, network: Network, opened: Opened, options: NetworkOptions
    ) -> dict[str, Any] | None:
        if result.uncertainty is None:
            return None
        # what the method can come to at the most, in nats
        classes = len(network.classes)
        total = classes * math.log(2) if Plan.read(network.folder).multilabel else math.log(classes + 1)
        greatest = {"class_entropy": math.log(2), "total_entropy": total}
        return self._evidence.keep_uncertainty(
            opened.image,
            result.uncertainty,
            labels > 0,
            ", ".join(network.labels),
            opened.path,
            opened.modality,
            brightest=greatest.get(options.uncertainty, 1.0),
            temporary=opened.temporary,
        )


def _as_labels(classes: np.ndarray, network: Network) -> np.ndarray:
    """Return class indices, uint8 [...], as the labels of masks."""
    table = np.zeros(256, np.uint8)
    for name, index in network.classes.items():
        table[index] = network.labels[name]
    return table[classes]


def _target(
    name: str, label: int, mask: np.ndarray, image: MedicalImage, result: NetworkResult, known: Target | None
) -> dict[str, Any]:
    pixels = int(np.count_nonzero(mask))
    planes = int(mask.any(axis=(1, 2)).sum())
    measured = measure(mask, image)
    diameter = measured.long_axis_mm if known is not None and known.is_finding else None
    doubt = doubt_of_size(known, pixels, image) if known is not None else ""
    size = size_in_words(pixels, image, diameter)
    where = f" on {planes} of {image.n_planes} planes" if image.is_volume else ""
    return {
        "name": name,
        "label": label,
        "found": pixels > 0,
        "area_pixels": pixels,
        "area_mm2": area_mm2(pixels, image),
        "volume_mm3": volume_mm3(pixels, image),
        "diameter_mm": diameter,
        "measurements": measured.to_dict(),
        "uncertainty_score": result.scores.get(name),
        "reason": " ".join(filter(None, [f"{name}: {size}{where}." if pixels else f"{name}: not found.", doubt])),
    }
