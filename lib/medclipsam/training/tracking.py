"""A training's curves in TensorBoard or MLflow, for those who look at many trainings there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from medclipsam.base.extras import MissingExtraError


class Tracker(Protocol):
    """Takes down how a training goes."""

    def log(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Take down what an epoch came to; what is None was not measured."""

    def close(self) -> None:
        """Write what is left to write."""


def tracker(kind: str, folder: Path, run: str, options: Mapping[str, Any]) -> Tracker:
    """Return a tracker.

    Parameters
    ----------
    kind : {"none", "tensorboard", "mlflow"}
        TensorBoard's event files, or MLflow's SQLite file `mlflow.db`; nothing leaves the machine.
    folder : Path
        Where they go.
    run : str
        Name of the training.
    options : mapping
        What it was started with.

    Raises
    ------
    InputError
        If the package is not installed.
    """
    if kind == "tensorboard":
        return _TensorBoard(folder / "tensorboard" / run)
    return _MLflow(folder, run, options) if kind == "mlflow" else _Nowhere()


class _Nowhere:
    def log(self, epoch: int, values: Mapping[str, float | None]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "Tracking with TensorBoard") from None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._writer: Any = SummaryWriter(str(folder))

    def log(self, epoch: int, values: Mapping[str, float | None]) -> None:
        for name, value in _measured(values):
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, folder: Path, run: str, options: Mapping[str, Any]) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtraError("mlflow", "Tracking with MLflow") from None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name("medclipsam")
        experiment = known.experiment_id if known else self._client.create_experiment("medclipsam", str(folder))
        self._run = self._client.create_run(experiment, run_name=run).info.run_id
        for name, value in options.items():
            self._client.log_param(self._run, name, value)

    def log(self, epoch: int, values: Mapping[str, float | None]) -> None:
        for name, value in _measured(values):
            self._client.log_metric(self._run, name, value, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _measured(values: Mapping[str, float | None]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in values.items() if value is not None]
