"""The one pipeline of a server: loaded, warmed up, dropped and loaded again."""

from __future__ import annotations

from typing import Any

import pytest

from medclipsam.base.errors import CancelledError, WeightsError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.refine import Clicks
from medclipsam.server.base.conf import AppConf
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.inference.work import Job
from medclipsam.targets import TargetSet


def make(**conf: str) -> SharedPipeline:
    return SharedPipeline(AppConf.from_strings(conf), TargetSet.load())


def test_a_warm_up_loads_and_segments_once(loaded: Any) -> None:
    shared = make()
    assert not shared.is_loaded
    shared.warm_up()
    assert shared.is_loaded
    assert len(loaded) == 1
    assert len(loaded[0].asked) == 1


def test_models_that_were_dropped_are_loaded_by_the_next_request(loaded: Any, picture: Any) -> None:
    shared = make()
    image = MedicalImage.from_array(picture)
    first = shared.segment(image, "lungs", ZeroShotOptions())
    shared.release()
    assert not shared.is_loaded
    again = shared.segment(image, "lungs", ZeroShotOptions())
    assert len(loaded) == 2
    assert (first.labels == again.labels).all()


def test_a_warm_up_without_weights_is_an_error_that_says_how_to_get_them() -> None:
    shared = make(weights="biomedclip+medsam")
    assert not shared.can_load()
    with pytest.raises(WeightsError, match="weights fetch"):
        shared.warm_up()


def test_clicks_tell_their_job_how_far_they_are_and_stop_when_it_is_cancelled(loaded: Any, picture: Any) -> None:
    shared = make()
    image = MedicalImage.from_array(picture)
    clicks = {1: Clicks.from_ijk(image, foreground=[[5, 5]])}
    job = Job(lambda _: None, "one", "refine", "somebody", 60.0)
    shared.refine(image, None, clicks, {}, job)
    assert job.message.startswith("clicks, plane 1")
    job.cancel()
    with pytest.raises(CancelledError):
        shared.refine(image, None, clicks, {}, job)


def test_the_state_counts_what_the_cache_spared() -> None:
    shared = make()
    assert shared.can_load()
    assert not shared.state().models_loaded
    shared.warm_up()
    shared.warm_up()
    state = shared.state()
    assert state.models_loaded
    assert (state.embedding_runs, state.embedding_hits) == (1, 1)
    assert state.embedding_bytes > 0
