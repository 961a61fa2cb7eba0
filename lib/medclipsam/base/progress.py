"""Progress of long commands: a bar on a terminal, a line a minute elsewhere (log files, CI, containers)."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

# Seconds between two lines where there is no terminal.
INTERVAL = 60.0
# Work that takes fewer seconds gets no line there.
SHORT = 2.0


class ProgressBar(tqdm):
    """`tqdm`, which writes whole lines where standard error is not a terminal.

    Without a terminal one line is written each `INTERVAL` seconds, whether or not an item was completed in the
    meantime, and one at the end: items done, time elapsed, and the time left.

    Parameters
    ----------
    items : iterable, optional
        What is iterated over; without it call `update`.
    show : bool
        Whether to show anything.
    unit : str
        What is counted, in the singular.
    **options
        Of `tqdm`: `total`, `initial`, `desc`, `unit_scale`, `leave`.
    """

    def __init__(
        self, items: Iterable[Any] | None = None, *, show: bool = True, unit: str = "item", **options: Any
    ) -> None:
        self._stream = sys.stderr
        self._plain = show and not self._stream.isatty()
        self._ended = threading.Event()
        self._began = time.monotonic()
        # without a terminal tqdm keeps the counts; its own output, made for terminals, is discarded
        file = io.StringIO() if self._plain else self._stream
        super().__init__(items, disable=not show, unit=unit, file=file, **options)
        self.unit = unit  # tqdm sets it only where it shows something
        if self._plain:
            threading.Thread(target=self._write_lines, name="progress", daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the items, and count each after it was worked on."""
        if not self._plain:
            yield from super().__iter__()
            return
        with self:
            for item in self.iterable:
                yield item
                self.n += 1

    def begin(self, desc: str, total: int, *, unit: str = "item", seconds: float = 0.0) -> None:
        """Begin another stage of the work.

        Parameters
        ----------
        desc : str
            What the stage is called.
        total : int
            Its items.
        unit : str
            What is counted, in the singular.
        seconds : float
            How long the stage has taken already.
        """
        self._began = time.monotonic() - seconds
        self.unit = unit
        self.reset(total)
        self.initial = 0
        self.set_description(desc)

    def close(self) -> None:
        """Write the last line, and stop writing."""
        if self._plain and not self._ended.is_set():
            self._ended.set()
            if time.monotonic() - self._began >= SHORT:
                self._write_line()
        super().close()

    def line(self) -> str:
        """Return the progress as one line."""
        elapsed, made = time.monotonic() - self._began, self.n - self.initial
        name = self.desc.removesuffix(": ")  # tqdm puts that behind it
        done = self._count(self.n)
        counted = f"{done} of {self._count(self.total)}" if self.total else done
        if self.unit_scale:
            counted += self.unit
        else:
            plural = f"{self.unit[:-1]}ies" if self.unit.endswith("y") else f"{self.unit}s"
            counted += f" {plural}" if self.unit[-1:].isalpha() else f" {self.unit}"
        parts = [counted, f"{tqdm.format_interval(elapsed)} elapsed"]
        if self.total and made > 0 and self.n < self.total:
            parts.append(f"about {tqdm.format_interval(elapsed / made * (self.total - self.n))} left")
        if self.postfix:
            parts.append(str(self.postfix))
        return (f"{name}: " if name else "") + ", ".join(parts)

    def _count(self, number: float) -> str:
        return str(tqdm.format_sizeof(number, divisor=self.unit_divisor)) if self.unit_scale else f"{number:.0f}"

    def _write_lines(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._write_line()

    def _write_line(self) -> None:
        try:
            self._stream.write(f"{self.line()}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._ended.set()  # the log was closed; the work goes on
