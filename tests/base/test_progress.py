"""Progress where there is no terminal: whole lines, with counts and the time left."""

import io
import re
import time
from types import SimpleNamespace

import pytest

from medclipsam.base import progress
from medclipsam.base.progress import ProgressBar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch):
    """Standard error that is not a terminal; every piece of work is long enough for a line."""
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setattr(progress, "SHORT", 0.0)
    return stream


def _wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_without_a_terminal_a_line_is_written_each_interval_also_while_one_item_takes_long(log, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    for item in ProgressBar(range(4), desc="reading", unit="image"):
        if item == 3:
            _wait_for(lambda: log.getvalue().count("3 of 4 images") >= 2)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert all(line.startswith("reading: ") for line in lines)
    counts = [int(re.search(r"(\d) of 4 images", line).group(1)) for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert "left" in next(line for line in lines if "3 of 4" in line)
    assert "left" not in lines[-1]


def test_time_left_comes_from_what_was_done_in_this_run(log, monkeypatch):
    bar = ProgressBar(total=100, initial=60, unit="case")
    bar.update(10)
    monkeypatch.setattr(bar, "_began", time.monotonic() - 100)
    assert "70 of 100 cases" in bar.line()
    assert "01:40 elapsed" in bar.line()
    assert "05:00 left" in bar.line()  # 10 in 100 s, 30 to go
    bar.close()


def test_a_new_stage_counts_and_measures_from_its_beginning(log):
    with ProgressBar() as bar:
        bar.begin("preparing", 2, unit="image")
        bar.update(2)
        bar.begin("training", 10, unit="epoch", seconds=60.0)
        bar.update(6)
        bar.set_postfix({"loss": "0.5"})
        line = bar.line()
    assert line.startswith("training: 6 of 10 epochs")
    assert "00:40 left" in line
    assert "loss=0.5" in line


def test_bytes_are_scaled_and_an_unknown_total_is_left_out(log):
    with ProgressBar(total=5_000_000_000, unit="B", unit_scale=True) as bar:
        bar.update(2_500_000_000)
        assert bar.line().startswith("2.50G of 5.00GB")
    with ProgressBar(iter("abc")) as bar:
        assert list(bar) == ["a", "b", "c"]
        assert bar.line().startswith("3 items")


def test_nothing_is_written_where_nothing_is_to_be_shown_or_the_work_was_short(log, monkeypatch):
    assert list(ProgressBar(range(3), show=False)) == [0, 1, 2]
    with ProgressBar(show=False, unit="epoch") as bar:
        assert bar.unit == "epoch"
        bar.begin("training", 3, unit="image")
        assert (bar.unit, bar.total) == ("image", 3)
        bar.update()
        bar.set_postfix({"loss": "0.5"})
    monkeypatch.setattr(progress, "SHORT", 3600.0)
    assert list(ProgressBar(range(3))) == [0, 1, 2]
    assert log.getvalue() == ""


def test_the_last_line_is_written_where_the_work_fails(log):
    def work():
        for item in ProgressBar(range(3), unit="image"):
            if item == 1:
                raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        work()
    assert "1 of 3 images" in log.getvalue().splitlines()[-1]


def test_work_goes_on_where_the_log_is_closed(log):
    with ProgressBar(range(3)) as bar:
        log.close()
        assert list(bar) == [0, 1, 2]


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = _Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    assert list(ProgressBar(range(3), desc="reading")) == [0, 1, 2]
    assert "\r" in stream.getvalue()
    assert "3/3" in stream.getvalue()
