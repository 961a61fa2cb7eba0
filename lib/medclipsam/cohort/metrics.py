"""What a run counts, for Prometheus; no label holds a name of a study."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from medclipsam.cohort.work import Outcome

# From a small plane to a large volume on a CPU.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class RunMetrics:
    """The metrics of one driving process.

    Parameters
    ----------
    port : int
        Where they are served, on all addresses; 0 for nowhere.

    Attributes
    ----------
    registry : CollectorRegistry
        Prometheus's.
    """

    def __init__(self, port: int = 0) -> None:
        self.registry = CollectorRegistry()
        self._studies = Counter(
            "medclipsam_cohort_studies", "Studies with a result, by status", ["status"], registry=self.registry
        )
        self._findings = Counter(
            "medclipsam_cohort_findings", "Rows of the table, by whether the mask is empty", ["found"],
            registry=self.registry,
        )  # fmt: skip
        self._failures = Counter("medclipsam_cohort_failures", "Attempts that failed", registry=self.registry)
        self._ended = Counter(
            "medclipsam_cohort_workers_ended", "Workers that ended unexpectedly", registry=self.registry
        )
        self._bytes = Counter("medclipsam_cohort_mask_bytes", "Bytes of masks written", registry=self.registry)
        self._seconds = Histogram(
            "medclipsam_cohort_seconds", "Seconds of a study by stage", ["stage"], buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._in_hand = Gauge("medclipsam_cohort_in_hand", "Studies that workers have in hand", registry=self.registry)
        self._workers = Gauge("medclipsam_cohort_workers", "Workers that are ready", registry=self.registry)
        if port:
            start_http_server(port, registry=self.registry)

    def done(self, outcome: Outcome) -> None:
        """Count a study that has a result."""
        self._studies.labels(outcome.status).inc()
        self._findings.labels("true").inc(outcome.found)
        self._findings.labels("false").inc(outcome.findings - outcome.found)
        self._bytes.inc(outcome.size)
        for stage, seconds in outcome.seconds.items():
            self._seconds.labels(stage).observe(seconds)

    def failed(self) -> None:
        """Count an attempt that failed."""
        self._failures.inc()

    def worker_ended(self) -> None:
        """Count a worker that ended unexpectedly."""
        self._ended.inc()

    def in_hand(self, studies: int, workers: int) -> None:
        """Note what is being worked on."""
        self._in_hand.set(studies)
        self._workers.set(workers)
