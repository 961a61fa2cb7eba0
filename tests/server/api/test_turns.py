"""One file of a user is read at a time outside the models' queue."""

from __future__ import annotations

import threading

import pytest

from medclipsam.server.api.routes.common import Turns
from medclipsam.server.base.errors import BusyError


def test_a_user_has_one_turn_at_a_time_and_others_have_theirs() -> None:
    turns = Turns(waiting=0)
    with turns.of("ann"):
        with pytest.raises(BusyError) as refused, turns.of("ann"):
            pass
        assert refused.value.retry_after > 0
        with turns.of("bob"):
            pass
    with turns.of("ann"):
        pass
    assert not turns._users


def test_a_turn_is_given_back_after_an_error() -> None:
    turns = Turns(waiting=0)
    with pytest.raises(ZeroDivisionError), turns.of("ann"):
        raise ZeroDivisionError
    with turns.of("ann"):
        pass


def test_who_waits_gets_the_turn_or_is_told_that_it_takes_too_long() -> None:
    patient, impatient = Turns(waiting=1, seconds=60), Turns(waiting=1, seconds=0.01)
    done = threading.Event()

    def ask() -> None:
        with patient.of("ann"):
            done.set()

    with patient.of("ann"):
        asking = threading.Thread(target=ask)
        asking.start()
        assert not done.wait(0.05)
    asking.join(60)
    assert done.is_set()
    with impatient.of("ann"), pytest.raises(BusyError), impatient.of("ann"):
        pass
