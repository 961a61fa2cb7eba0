"""Curves of a training in TensorBoard or MLflow; nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from medclipsam.base.extras import MissingExtraError

_EXPERIMENT = "medclipsam"


class Tracker:
    """Hands figures on, and drops them where there is nobody to hand them to; a context manager.

    Parameters
    ----------
    write : callable, optional
        Called with name, value and step.
    close : callable, optional
        Called at the end.
    """

    def __init__(
        self,
        write: Callable[[str, float, int], object] = lambda *_: None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._write, self._close = write, close

    def log(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Hand on the figures of a step; what is None was not measured."""
        for name, value in figures.items():
            if value is not None:
                self._write(name.replace(" ", "_"), value, step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def tracker(kind: str, folder: Path, run: str, options: Mapping[str, Any]) -> Tracker:
    """Return a tracker.

    Parameters
    ----------
    kind : {"none", "tensorboard", "mlflow"}
        TensorBoard's event files in `tensorboard/RUN`, or MLflow's SQLite file `mlflow.db`.
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
    if kind == "none":
        return Tracker()
    try:
        return (_tensorboard if kind == "tensorboard" else _mlflow)(folder, run, options)
    except ImportError:
        raise MissingExtraError(kind, f"Tracking with {kind}") from None


def _tensorboard(folder: Path, run: str, _: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard" / run
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    writer = SummaryWriter(str(place))
    return Tracker(writer.add_scalar, writer.close)


def _mlflow(folder: Path, run: str, options: Mapping[str, Any]) -> Tracker:
    from mlflow.tracking import MlflowClient

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # the environment may name a server for other experiments
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    known = client.get_experiment_by_name(_EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(_EXPERIMENT, str(folder.absolute()))
    number = client.create_run(experiment, run_name=run).info.run_id
    for name, value in options.items():
        client.log_param(number, name, value)
    return Tracker(
        lambda name, value, step: client.log_metric(number, name, value, step=step),
        lambda: client.set_terminated(number),
    )
