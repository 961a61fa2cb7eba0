"""How a cohort is worked on: options on which no result depends."""

from __future__ import annotations

from medclipsam.base.options import Options, option


class CohortOptions(Options):
    """How a cohort is worked on; they change no result."""

    workers: int = option(0, "Workers (0: one for each GPU, or one for each four cores)", 0, 10_000)
    cpus_per_worker: int = option(0, "Cores of a worker (0: four, or all where there are fewer)", 0, 1024)
    gpus_per_worker: float = option(1.0, "GPUs of a worker where it runs on one; 0.5 for two workers a GPU", 0.01, 64)
    ahead: int = option(3, "Studies that a worker has in hand at once: one is computed, others read or written", 1, 64)
    attempts: int = option(3, "Attempts at a study before it is set aside", 1, 100)
    timeout: int = option(3600, "Time without an answer after which a worker is ended", 1, 7 * 86400, unit="seconds")
    patience: int = option(
        600, "Time for which a study waits for a DICOMweb server that does not answer", 0, 7 * 86400, unit="seconds"
    )
    lease: int = option(
        120, "Time without a sign of life after which another machine's claims expire", 1, 86400, unit="seconds"
    )
    metrics_port: int = option(0, "Port for Prometheus metrics of this process (0: none)", 0, 65535)
