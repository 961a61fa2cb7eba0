"""Bounds for threads that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from medclipsam.server.base.errors import BusyError
from medclipsam.server.studies.waiting import Places, Turn


def in_thread(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


def test_no_more_threads_than_places_are_inside() -> None:
    places = Places(2, "the PACS")

    def enter() -> str:
        try:
            with places.one():
                return "inside"
        except BusyError:
            return "refused"

    with places.one(), places.one():
        assert in_thread(enter) == "inside"
        with ThreadPoolExecutor(1) as pool:
            entered, leave = threading.Event(), threading.Event()

            def stay() -> None:
                with places.one():
                    entered.set()
                    leave.wait(30)

            pool.submit(stay)
            assert entered.wait(30)
            assert in_thread(enter) == "refused"
            assert enter() == "inside"
            leave.set()
    assert in_thread(enter) == "inside"


def test_few_wait_for_a_turn_and_not_for_long() -> None:
    turn = Turn("a series", waiting=1, seconds=0.2)

    def take() -> None:
        with turn:
            pass

    with turn:
        with turn:
            pass
        for _ in range(2):
            # one after the other they may wait, and none of them for ever
            with pytest.raises(BusyError):
                in_thread(take)
    in_thread(take)

    patient = Turn("a series", waiting=1, seconds=30)

    def take_patiently() -> None:
        with patient:
            pass

    with ThreadPoolExecutor(1) as pool:
        with patient:
            first = pool.submit(take_patiently)
            while not patient.waiting:
                pass
            with pytest.raises(BusyError):
                in_thread(take_patiently)
        first.result(30)
