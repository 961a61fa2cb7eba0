"""The cyclical learning rate, and which epochs leave a checkpoint in the ensemble.

Zhao et al., "Efficient Bayesian uncertainty estimation for nnU-Net", MICCAI 2022, arXiv 2212.06278.
"""

from __future__ import annotations

from dataclasses import dataclass

from medclipsam.base.errors import OptionError
from medclipsam.training.options import TrainingOptions


@dataclass(frozen=True)
class Schedule:
    """Learning rate over T epochs in C cycles.

    The first epoch of a cycle has the rate alpha_r; epoch t_c of a cycle of T_c epochs has

        alpha_0 * (1 - min(t_c, gamma * T_c) / D) ** 0.9

    Parameters
    ----------
    epochs, cycles : int
        T and C. Where C does not divide T, cycles differ by one epoch.
    keep : int
        K: the last so many epochs of each cycle leave a checkpoint.
    base, restart : float
        alpha_0 and alpha_r.
    gamma : float
        Share of a cycle after which the rate stays.
    denominator : {"total", "cycle"}
        D. "total" is T: with three cycles the rate falls from 0.01 to 0.0076 within each. "cycle" is T_c: it falls to
        0.0023.
    """

    epochs: int
    cycles: int = 3
    keep: int = 10
    base: float = 0.01
    restart: float = 0.1
    gamma: float = 0.8
    denominator: str = "total"

    def __post_init__(self) -> None:
        if not 1 <= self.cycles <= self.epochs:
            raise OptionError("cycles", self.cycles, f"a whole number from 1 to the {self.epochs} epochs")
        if not 1 <= self.keep <= self.epochs // self.cycles:
            raise OptionError("keep", self.keep, f"a whole number from 1 to {self.epochs // self.cycles}")
        if self.denominator not in ("total", "cycle"):
            raise OptionError("denominator", self.denominator, "one of total, cycle")

    @classmethod
    def from_options(cls, options: TrainingOptions) -> Schedule:
        """Make the schedule of resolved options."""
        assert options.epochs is not None
        assert options.keep is not None
        assert options.denominator is not None
        assert options.learning_rate is not None
        return cls(
            options.epochs,
            options.cycles,
            options.keep,
            options.learning_rate,
            options.restart_rate,
            options.gamma,
            options.denominator,
        )

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, 0-based."""
        start, end = self._cycle(epoch)
        place, length = epoch - start, end - start
        if place == 0:
            return self.restart
        total = self.epochs if self.denominator == "total" else length
        return float(self.base * (1 - min(place, self.gamma * length) / total) ** 0.9)

    def keeps(self, epoch: int) -> bool:
        """Return whether an epoch leaves a checkpoint."""
        return self._cycle(epoch)[1] - epoch <= self.keep

    @property
    def members(self) -> int:
        """Number of checkpoints of the whole training."""
        return self.cycles * self.keep

    def _cycle(self, epoch: int) -> tuple[int, int]:
        """Return the first epoch of the cycle that an epoch lies in, and that of the next."""
        bounds = [round(index * self.epochs / self.cycles) for index in range(self.cycles + 1)]
        index = max(place for place in range(self.cycles) if bounds[place] <= epoch)
        return bounds[index], bounds[index + 1]
