"""What is known of images before anyone opens them: embeddings, presence, uncertainty, disagreement.

All is made in steps of a second or two, so that other work on the models gets its turn in between, and goes into the
ledger at once, so that no step is done twice: by whom and how often it is asked does not matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from medclipsam.active.ledger import Ledger, Score
from medclipsam.active.score import score_of
from medclipsam.base.errors import InputError, UpstreamError
from medclipsam.base.metrics import dice
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.label_map import read_kept_label
from medclipsam.server.base.errors import ConflictError
from medclipsam.server.inference.networks import NetworkOptions, SharedNetworks
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.work import Job
from medclipsam.server.studies.datastore import ORIGINAL, Datastore
from medclipsam.server.studies.images import ImageReader
from medclipsam.targets import Target
from medclipsam.training.ensemble import NetworkResult
from medclipsam.training.names import DEFAULT_NAME
from medclipsam.training.store import Network

logger = logging.getLogger(__name__)


Method = Literal["embedding", "presence", "uncertainty", "disagreement"]
METHODS: tuple[Method, ...] = get_args(Method)

# Images and seconds after which a step ends: other requests wait for no more than that.
_STEP = 4
_STEP_SECONDS = 1.5


class ImageScorer:
    """Makes what the strategies choose by.

    Parameters
    ----------
    ledger : callable
        Returns where it is kept.
    datastore : callable
        Returns the studies.
    networks : SharedNetworks
        The published networks.
    pipeline : SharedPipeline
        Embeds images, asks for presence and makes zero-shot masks.
    images : ImageReader
    targets : sequence of Target
        What presence is asked for; the classes of the published network where there are none.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        datastore: Callable[[], Datastore],
        networks: SharedNetworks,
        pipeline: SharedPipeline,
        images: ImageReader,
        targets: Sequence[Target] = (),
    ) -> None:
        self._ledger = ledger
        self._datastore = datastore
        self._networks = networks
        self._pipeline = pipeline
        self._images = images
        self.targets = targets
        self._left_out: set[tuple[Method, str]] = set()

    @property
    def by_itself(self) -> Sequence[Method]:
        """What is made without anybody asking: the rest is dear, or nobody has said what for."""
        return ("embedding", "presence", "uncertainty") if self.targets else ("embedding", "uncertainty")

    def check(self, method: Method) -> None:
        """Raise `ConflictError` where a method has nothing yet to score by."""
        network = self._network()
        if method in ("uncertainty", "disagreement") and network is None:
            raise ConflictError(f"No network has been published yet, and {method} is what one says of the images.")
        if method == "presence" and network is None and not self.targets:
            raise ConflictError(
                "Nobody has said whose presence is asked for: name targets with --targets, or train a network first."
            )

    def waiting(self, method: Method, limit: int | None = None) -> list[str]:
        """Return the images that a method has yet to see, in the order of their ids.

        Parameters
        ----------
        method : str
            One of `METHODS`.
        limit : int, optional
            No more than so many.
        """
        left_out = {image for kind, image in self._left_out if kind == method}
        asked = None if limit is None else limit + len(left_out)
        ledger, network = self._ledger(), self._network()
        if method == "embedding":
            found = ledger.without_embedding(self._pipeline.encoder_identity(), asked)
        elif method == "presence":
            found = ledger.without_presence(asked) if self.targets or network is not None else []
        elif network is None:
            found = []
        else:
            found = ledger.without_score(network.identity, asked, compared=method == "disagreement")
        return [image for image in found if image not in left_out][:limit]

    def step(self, method: Method, limit: int = _STEP, job: Job | None = None) -> int:
        """Look at some of the images that wait, and return at how many; 0 where none is left.

        Raises
        ------
        MedClipSamError
            If it cannot go on now: the server is busy or the models cannot be loaded.
        """
        begun, done = time.monotonic(), 0
        found: dict[str, Any] = {}
        network = self._network()
        try:
            for image in self.waiting(method, limit):
                try:
                    found[image] = self._look_at(method, image, network, job)
                except (InputError, UpstreamError) as error:
                    if isinstance(error, UpstreamError) and not error.permanent:
                        raise
                    logger.info("An image is passed over by the rounds (%s)", type(error).__name__)
                    # until the next start: it cannot be read, or is of another kind than the network's
                    self._left_out.add((method, image))
                done += 1
                if time.monotonic() - begun > _STEP_SECONDS:
                    break
        finally:
            # also where the work was cancelled or the server is busy after the first of them
            if found:
                self._keep(method, found, network)
        return done

    def left_out(self, method: Method) -> int:
        """Return how many images could not be looked at."""
        return sum(kind == method for kind, _ in self._left_out)

    def _network(self) -> Network | None:
        return self._networks.store.current(DEFAULT_NAME)

    def _look_at(self, method: Method, image: str, network: Network | None, job: Job | None) -> Any:
        picture = self._read(image, network if method in ("uncertainty", "disagreement") else None)
        if method == "embedding":
            return self._pipeline.embed(picture)
        if method == "presence":
            return self._presence(picture, network, job)
        assert network is not None
        result = self._networks.predict(network, picture, NetworkOptions(), job)
        ask = method == "disagreement"
        compared = self._disagreement(image, picture, result, network, job, ask=ask)
        return score_of(result, {index: name for name, index in network.classes.items()}, compared)

    def _keep(self, method: Method, found: Mapping[str, Any], network: Network | None) -> None:
        ledger = self._ledger()
        if method == "embedding":
            ledger.set_embeddings(self._pipeline.encoder_identity(), found)
        elif method == "presence":
            ledger.set_presence(found)
        else:
            assert network is not None
            scores: dict[str, Score] = dict(found)
            ledger.set_scores(network.identity, scores)

    def _read(self, image: str, network: Network | None) -> MedicalImage:
        path = Path(self._datastore().get_image_uri(image))
        picture = self._images.read(path)
        if picture.modality is None and network is not None and network.modality is not None:
            picture = self._images.read(path, network.modality)
        return picture

    def _presence(self, picture: MedicalImage, network: Network | None, job: Job | None) -> float:
        """Return by how much the target that is most surely there is above its threshold."""
        names = [target.name for target in self.targets if target.in_modality(picture.modality)]
        if not self.targets and network is not None:
            names = list(network.classes)
        if not names:
            raise InputError(f"No target of the settings is one of {picture.modality}.")
        asked = self._pipeline.presence(picture, "; ".join(names), job)
        return max(score - threshold for score, threshold in asked.values())

    def _disagreement(
        self, image: str, picture: MedicalImage, made: NetworkResult, network: Network, job: Job | None, *, ask: bool
    ) -> float | None:
        """Return 1 - Dice of the network's mask and the zero-shot one that lies with the studies.

        Where none lies there one is made if `ask` says so; else None.
        """
        store = self._datastore()
        numbers = dict(network.labels)
        if ORIGINAL in {str(tag) for tag in store.get_labels_by_image_id(image)}:
            path, info = Path(store.get_label_uri(image, ORIGINAL)), store.get_label_info(image, ORIGINAL)
            other = read_kept_label(path, picture, info)
        elif ask:
            result = self._pipeline.segment(picture, "; ".join(network.classes), ZeroShotOptions(), job=job)
            other, numbers = result.label_map(picture), dict(result.label_names)
        else:
            return None
        # a class that the text does not name is nowhere
        scores = [
            dice(made.mask(index), other.mask_of(numbers.get(name, -1))) for name, index in network.classes.items()
        ]
        return 1.0 - float(np.mean(scores))
