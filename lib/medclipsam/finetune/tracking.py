"""Where the figures of a training go beside the log: nowhere, TensorBoard's files, or an MLflow database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from medclipsam.base.extras import MissingExtraError
from medclipsam.finetune.options import FinetuneOptions


class Tracker:
    """Takes figures by step; the plain one drops them."""

    def __init__(
        self,
        note: Callable[[str, float, int], object] | None = None,
        close: Callable[[], object] | None = None,
    ) -> None:
        self._note, self._close = note, close

    @classmethod
    def open(cls, options: FinetuneOptions, folder: Path) -> Tracker:
        """Return the tracker that the options name, writing into `folder`.

        Raises
        ------
        InputError
            If its package is not installed.
        """
        try:
            if options.tracker == "tensorboard":
                return cls._tensorboard(folder)
            if options.tracker == "mlflow":
                return cls._mlflow(options, folder)
        except ImportError:
            raise MissingExtraError(options.tracker, f"Tracker {options.tracker!r}") from None
        return cls()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Note figures of a step."""
        if self._note is not None:
            for name, value in figures.items():
                self._note(name.replace(" ", "_"), value, step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._close is not None:
            self._close()

    @classmethod
    def _tensorboard(cls, folder: Path) -> Tracker:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))
        return cls(writer.add_scalar, writer.close)

    @classmethod
    def _mlflow(cls, options: FinetuneOptions, folder: Path) -> Tracker:
        from mlflow.tracking import MlflowClient

        # the server's own setting names another place
        client = MlflowClient(tracking_uri=f"sqlite:///{folder.absolute()}/mlflow.db")
        known = client.get_experiment_by_name("medclipsam finetune")
        experiment = known.experiment_id if known else client.create_experiment("medclipsam finetune")
        run = client.create_run(experiment).info.run_id
        for key, value in options.to_dict().items():
            client.log_param(run, key, value)
        return cls(
            lambda name, value, step: client.log_metric(run, name, value, step=step),
            lambda: client.set_terminated(run),
        )
