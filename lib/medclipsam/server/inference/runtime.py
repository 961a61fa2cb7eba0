"""How long requests take on this server, measured, and from that how long the next will take."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.saliency import FAST, PUBLISHED

if TYPE_CHECKING:
    from medclipsam.pipeline.zero_shot import ZeroShotResult

# Measurements that count; older ones are forgotten, so that the estimate follows the machine's load.
_WINDOW = 30


class RuntimeEstimator:
    """Seconds by kind of work.

    A request looks at each plane for presence, and draws a mask in the planes that hold a target: a saliency map, whose
    time goes with `steps` and `samples`, and all else. Each of the three has a rate of its own. In which share of a
    volume's planes masks are drawn is measured too. Volumes that are propagated through have rates of their own.
    """

    def __init__(self) -> None:
        self._rates: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))

    def record(self, result: ZeroShotResult, planes: int, options: ZeroShotOptions) -> None:
        """Measure an answered request that looked at so many planes."""
        seconds = result.seconds
        asked = planes * len(result.targets)
        if not asked:
            return
        way = _way(planes, options)
        if options.presence:
            self._rates[f"{way}presence"].append(seconds.get("presence", 0.0) / asked)
        drawn = sum(len(target.planes) for target in result.targets)
        if drawn:
            saliency = seconds.get("saliency", 0.0)
            rest = seconds["total"] - saliency - seconds.get("presence", 0.0) - seconds.get("text", 0.0)
            self._rates[f"{way}saliency {options.saliency}"].append(saliency / (drawn * _work(options)))
            self._rates[f"{way}rest"].append(max(0.0, rest) / drawn)
        if planes > 1 and options.presence:
            self._rates[f"{way}share"].append(drawn / asked)

    def estimate(self, planes: int, targets: int, options: ZeroShotOptions) -> float | None:
        """Return the seconds that a request will take; None where nothing like it has been measured.

        Parameters
        ----------
        planes : int
            Planes to look at.
        targets : int
            Targets to look for.
        options : ZeroShotOptions
            Options of the request.
        """
        way = _way(planes, options)
        saliency, rest = self._usual(f"{way}saliency {options.saliency}"), self._usual(f"{way}rest")
        if saliency is None or rest is None:
            return None
        presence = share = None
        if options.presence:
            presence = self._usual(f"{way}presence")
            share = self._usual(f"{way}share") if planes > 1 else None
        # where no volume has been measured yet, masks may have to be drawn in all planes
        presence, share = presence or 0.0, 1.0 if share is None else share
        return planes * targets * (presence + share * (saliency * _work(options) + rest))

    def check(self, planes: int, targets: int, options: ZeroShotOptions, max_seconds: float) -> None:
        """Refuse a request that would take too long.

        Raises
        ------
        InputError
            If the estimate is above `max_seconds`; the sentence tells it, and how many planes would do.
        """
        estimate = self.estimate(planes, targets, options)
        if estimate is None or estimate <= max_seconds:
            return
        each = estimate / planes
        mend = "ask for fewer targets or steps"
        if planes > 1 and each <= max_seconds:
            mend = f"name at most {int(max_seconds / each)} planes with the option planes, such as 0-9"
        raise InputError(
            f"This would take about {estimate:.0f} s ({planes} planes at {each:.2g} s, as measured on this server); "
            f"the server's limit max_seconds is {max_seconds:g}: {mend}."
        )

    def _usual(self, rate: str) -> float | None:
        measured = self._rates.get(rate)
        return statistics.median(measured) if measured else None


def _way(planes: int, options: ZeroShotOptions) -> str:
    """Return what the rates of a request's kind of work begin with."""
    return "propagate " if planes > 1 and options.volume == "propagate" else ""


def _work(options: ZeroShotOptions) -> int:
    if options.saliency == "patch_text":
        return 1
    published = PUBLISHED.samples
    if options.saliency == "nib":
        return options.steps or len(published)
    if options.steps or options.samples or options.preset in ("published", "paper"):
        return (options.steps or len(published)) * (options.samples or published[0])
    # The weights may name another schedule, which does not change from request to request.
    return FAST.work
