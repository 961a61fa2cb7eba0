"""What a server counts, for Prometheus; no label holds a text, an image's name or anything of a patient."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From a cached small plane to a large volume on a CPU.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_INFER = re.compile(r"/infer/([^/]+)/?")


@dataclass(frozen=True)
class ServerState:
    """What is read from the server when it is asked for its metrics.

    Parameters
    ----------
    models_loaded : bool
        Whether the weights are in memory.
    embedding_hits : int
        Planes whose SAM embedding was found in the cache.
    embedding_runs : int
        Planes that SAM's image encoder ran on.
    embedding_bytes : int
        What the cache of embeddings holds.
    queue_length : int
        Requests that wait for the models.
    gpu_memory : mapping of str to int
        Bytes of GPU memory by kind: allocated, reserved, free; empty without a GPU.
    """

    models_loaded: bool = False
    embedding_hits: int = 0
    embedding_runs: int = 0
    embedding_bytes: int = 0
    queue_length: int = 0
    gpu_memory: Mapping[str, int] | None = None


class Metrics:
    """The metrics of one server process.

    Attributes
    ----------
    registry : CollectorRegistry
        Prometheus's; it holds this server's metrics and the process's own (memory, CPU seconds, open files).
    state : callable
        Returns the `ServerState`; set by the server.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state: Callable[[], ServerState] = ServerState
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "medclipsam_infer_requests",
            "Infer requests by model and outcome: ok, refused (4xx), busy (503), failed (other 5xx), left (the client "
            "went before the answer)",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "medclipsam_infer_seconds",
            "Seconds from an infer request to the first byte of its answer, by model; waiting in the queue included",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "medclipsam_stage_seconds",
            "Seconds of one request's stages: read, text, presence, prefix, saliency, coarse, sam_embed, sam_decode, "
            "steady, write",
            ["stage"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_StateCollector(self))

    def count_request(self, model: str, outcome: str, seconds: float) -> None:
        """Count one infer request."""
        self._requests.labels(model, outcome).inc()
        self._seconds.labels(model).observe(seconds)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of one request's stages."""
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format, `CONTENT_TYPE`."""
        return generate_latest(self.registry)


class _StateCollector(Collector):
    """Turns `ServerState` into metrics at each scrape, so that nothing has to be kept up to date in between."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering must not ask for a state."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._metrics.state()
        hits = CounterMetricFamily("medclipsam_embedding_cache_hits", "Planes whose SAM embedding was in the cache")
        hits.add_metric([], state.embedding_hits)
        runs = CounterMetricFamily("medclipsam_embedding_cache_misses", "Planes that SAM's image encoder ran on")
        runs.add_metric([], state.embedding_runs)
        yield from (hits, runs)
        for name, description, value in (
            ("medclipsam_models_loaded", "1 if the weights are in memory", int(state.models_loaded)),
            ("medclipsam_embedding_cache_bytes", "Bytes in the cache of SAM embeddings", state.embedding_bytes),
            ("medclipsam_queue_length", "Requests that wait for the models", state.queue_length),
        ):
            yield GaugeMetricFamily(name, description, value=value)
        memory = GaugeMetricFamily("medclipsam_gpu_memory_bytes", "GPU memory by kind", labels=["kind"])
        for kind, value in (state.gpu_memory or {}).items():
            memory.add_metric([kind], value)
        yield memory


METRICS = Metrics()


class CountInfers:
    """ASGI middleware that counts infer requests by their answers.

    Parameters
    ----------
    app : ASGI application
        What is wrapped.
    models : callable
        Returns the names of the served models. A request's model that is none of them counts as "unknown": a label
        must not hold what clients make up.
    metrics : Metrics
        Where it counts.
    """

    def __init__(self, app: ASGIApp, models: Callable[[], Collection[str]], metrics: Metrics = METRICS) -> None:
        self._app = app
        self._models = models
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and note the status of an infer request's answer."""
        asked = _INFER.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        seen: dict[str, Any] = {}

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"], seen["seconds"] = message["status"], time.perf_counter() - start
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            model = asked[1] if asked[1] in self._models() else "unknown"
            taken = seen.get("seconds", time.perf_counter() - start)
            self._metrics.count_request(model, outcome(seen.get("status")), taken)


def outcome(status: int | None) -> str:
    """Return the outcome that an HTTP status stands for; None is an answer that was never begun."""
    if status is None or status == 499:
        return "left"
    if status < 400:
        return "ok"
    if status < 500:
        return "refused"
    return "busy" if status == 503 else "failed"
