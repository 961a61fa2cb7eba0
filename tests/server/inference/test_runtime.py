"""Estimates from measured seconds, against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.pipeline.zero_shot import PlaneEvidence, TargetEvidence, ZeroShotResult
from medclipsam.server.inference.runtime import RuntimeEstimator


def result(drawn: int, **seconds: float) -> ZeroShotResult:
    evidence = TargetEvidence("lung", 1, ["a lung"], known=True)
    evidence.planes = [PlaneEvidence(plane, 0.9) for plane in range(drawn)]
    empty: dict[str, Any] = {}
    return ZeroShotResult(np.zeros((1, 1, 1), np.uint8), {"lung": 1}, [evidence], "lung", empty, empty, empty, seconds)


def test_nothing_is_estimated_before_anything_is_measured() -> None:
    pace = RuntimeEstimator()
    assert pace.estimate(300, 1, ZeroShotOptions()) is None
    pace.check(300, 1, ZeroShotOptions(), max_seconds=1)


def test_a_volume_is_estimated_from_one_plane() -> None:
    pace = RuntimeEstimator()
    options = ZeroShotOptions(steps=10, samples=10)
    pace.record(result(1, presence=0.1, saliency=2.0, sam_embed=0.5, total=2.6), 1, options)
    assert pace.estimate(1, 1, options) == pytest.approx(2.6)
    # each of 40 planes might hold the target
    assert pace.estimate(40, 1, options.replace(volume="planes")) == pytest.approx(40 * 2.6)
    # how much less it is where a target is followed from plane to plane is not known yet
    assert pace.estimate(40, 1, options) is None
    assert pace.estimate(1, 3, options) == pytest.approx(3 * 2.6)
    # half of the steps take half of the saliency's time
    assert pace.estimate(1, 1, ZeroShotOptions(steps=5, samples=10)) == pytest.approx(0.1 + 1.0 + 0.5)
    assert pace.estimate(1, 1, ZeroShotOptions(steps=10, presence=False)) == pytest.approx(2.5)
    assert pace.estimate(1, 1, ZeroShotOptions(preset="published")) == pytest.approx(2.6)
    # 5 of the published 100 runs, unless more are asked for
    assert pace.estimate(1, 1, ZeroShotOptions()) == pytest.approx(0.1 + 0.1 + 0.5)
    # nothing was measured with another method
    assert pace.estimate(1, 1, ZeroShotOptions(saliency="patch_text")) is None


def test_the_share_of_planes_with_a_target_is_measured_on_volumes() -> None:
    for options in (ZeroShotOptions(volume="planes"), ZeroShotOptions()):
        pace = RuntimeEstimator()
        pace.record(result(5, presence=2.0, saliency=10.0, sam_embed=5.0, total=17.0), 20, options)
        # 0.1 s of presence in each plane, 3 s in each quarter of them
        assert pace.estimate(100, 1, options) == pytest.approx(100 * 0.1 + 25 * 3.0)
    # planes that are drawn one by one are as images of one plane, and those of a propagated volume are not
    assert pace.estimate(1, 1, options) is None


def test_an_absent_target_measures_presence_alone() -> None:
    pace = RuntimeEstimator()
    pace.record(result(0, presence=1.0, total=1.0), 10, ZeroShotOptions())
    assert pace.estimate(10, 1, ZeroShotOptions()) is None


def test_one_slow_request_does_not_spoil_the_estimate() -> None:
    pace = RuntimeEstimator()
    for seconds in (1.0, 1.0, 50.0, 1.0, 1.0):
        pace.record(result(1, saliency=seconds, total=seconds), 1, ZeroShotOptions(presence=False))
    assert pace.estimate(2, 1, ZeroShotOptions(presence=False, volume="planes")) == pytest.approx(2.0)


def test_a_refusal_tells_the_estimate_the_limit_and_what_would_do() -> None:
    pace = RuntimeEstimator()
    options = ZeroShotOptions(presence=False, volume="planes")
    pace.record(result(1, saliency=2.0, total=2.0), 1, options)
    pace.check(50, 1, options, max_seconds=100)
    with pytest.raises(InputError, match=r"about 200 s .* 100: name at most 50 planes"):
        pace.check(100, 1, options, max_seconds=100)
    with pytest.raises(InputError, match="fewer targets or steps"):
        pace.check(1, 1, options, max_seconds=1)
