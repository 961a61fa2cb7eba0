import math

import pytest

from medclipsam.base.errors import OptionError
from medclipsam.training.options import TrainingOptions
from medclipsam.training.schedule import Schedule


def test_the_paper_s_schedule_follows_its_equation():
    schedule = Schedule(600, 3, 10)
    for epoch in range(600):
        t = epoch % 200
        expected = 0.1 if t == 0 else 0.01 * (1 - min(t, 0.8 * 200) / 600) ** 0.9
        assert math.isclose(schedule.rate(epoch), expected, rel_tol=1e-12)


@pytest.mark.parametrize(("denominator", "least"), [("total", 0.0076), ("cycle", 0.0023)])
def test_each_denominator_ends_a_cycle_at_its_rate(denominator, least):
    schedule = Schedule(600, 3, 10, denominator=denominator)
    for cycle in range(3):
        rates = [schedule.rate(epoch) for epoch in range(200 * cycle + 1, 200 * cycle + 200)]
        assert rates == sorted(rates, reverse=True)
        assert round(rates[-1], 4) == least
        # nothing falls after gamma of the cycle
        assert rates[159] == rates[-1] < rates[158]


def test_the_last_checkpoints_of_each_cycle_are_kept():
    schedule = Schedule(600, 3, 10)
    kept = [epoch for epoch in range(600) if schedule.keeps(epoch)]
    assert kept == [*range(190, 200), *range(390, 400), *range(590, 600)]
    assert schedule.members == 30


@pytest.mark.parametrize(("epochs", "cycles", "keep"), [(7, 3, 2), (5, 2, 2), (3, 3, 1), (11, 4, 2), (1, 1, 1)])
def test_cycles_that_do_not_divide_the_epochs_still_cover_them(epochs, cycles, keep):
    schedule = Schedule(epochs, cycles, keep)
    rates = [schedule.rate(epoch) for epoch in range(epochs)]
    assert rates.count(0.1) == cycles
    assert sum(schedule.keeps(epoch) for epoch in range(epochs)) == schedule.members == cycles * keep
    assert schedule.keeps(epochs - 1)


@pytest.mark.parametrize(
    "given", [{"epochs": 2, "cycles": 3}, {"epochs": 9, "keep": 4}, {"epochs": 9, "keep": 1, "denominator": "T"}]
)
def test_a_schedule_that_cannot_be_is_refused(given):
    with pytest.raises(OptionError):
        Schedule(**{"cycles": 3, **given})


def test_a_schedule_is_made_of_options():
    options = TrainingOptions(preset="full", device="cpu").resolved()
    assert Schedule.from_options(options) == Schedule(600, 3, 10, 0.01, 0.1, 0.8, "total")
