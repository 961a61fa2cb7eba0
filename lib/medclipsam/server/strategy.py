"""What to label next: at random, with a fixed share of images that networks are validated with."""

from __future__ import annotations

import random
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from medclipsam.server.trainer import patient_of
from medclipsam.training.store import NetworkStore

# Share of the samples that are validation images, as long as there are unlabelled ones of both kinds: more than their
# share of all images, since a network counts as validated once ten of them have a label.
VALIDATION_SHARE = 0.25


class RandomSample(Strategy):
    """Draw an unlabelled image, the ones that were proposed long ago or never more likely.

    Parameters
    ----------
    store : NetworkStore
        Says which patients are kept for validation.
    rng : random.Random, optional
        Where chance comes from.
    """

    def __init__(self, store: NetworkStore, rng: random.Random | None = None) -> None:
        super().__init__("Random, a quarter of them images that networks are validated with")
        self._store = store
        self._rng = rng or random.Random()
        self._patients: dict[str, str] = {}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's `id`, and whether it is kept for `validation`; None where all are labelled."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        now = int(time.time())
        strategy = request.get("strategy") or "random"
        weights = {}
        for image in images:
            seen = datastore.get_image_info(image).get("strategy", {}).get(strategy, {})
            weights[image] = max(1, now - int(seen.get("ts", 0)))
        # an order in which each image comes first with the chance of its weight (Efraimidis and Spirakis 2006)
        order = sorted(images, key=lambda image: self._rng.expovariate(weights[image]))
        split = self._store.split()
        wanted = self._rng.random() < VALIDATION_SHARE
        # headers are read of no more images than it takes to find one of the wanted kind
        chosen = next((image for image in order if split.holds(self._patient(datastore, image)) == wanted), order[0])
        held = split.holds(self._patient(datastore, chosen))
        return {"id": chosen, "weight": weights[chosen], "validation": held}

    def _patient(self, datastore: Datastore, image: str) -> str:
        if image not in self._patients:
            self._patients[image] = patient_of(datastore, image)
        return self._patients[image]
