"""What a long-running generator yields, and how the time that is left is estimated."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from napari_isdnet.window import Window

Step = TypeVar("Step")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """One step of a long job.

    ``done`` and ``total`` count the same unit of work over *all* stages, so ``done / total`` never goes back.
    ``window`` is the rectangle (level 0) that was finished by this step, if there is one; ``seconds_left`` is
    ``None`` until it can be estimated. ``figures`` carries numbers a caller may show (loss, IoU, ...).
    """

    done: float
    total: float
    stage: str
    window: Window | None = None
    seconds_left: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    def within(self, start: float, share: float) -> Progress:
        """This step of one part of a job as a step of the whole, 0 to 1, of which the part is ``share``."""
        done = start + share * self.fraction
        left = self.seconds_left
        if left is not None and self.fraction < 1:
            left *= (1 - done) / max(1e-9, share * (1 - self.fraction))
        return Progress(done, 1.0, self.stage, self.window, left, self.figures)


def result_of(steps: Generator[Step, None, Result], show: Callable[[Step], Any] | None = None) -> Result:
    """Run a job to its end and return its result; ``show`` is called with every step.

    To cancel, raise from ``show`` (Ctrl-C does): the job cleans up, and what it keeps is kept.
    """
    try:
        while True:
            step = next(steps)
            if show is not None:
                show(step)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()


class Clock:
    """Counts work done and turns it into :class:`Progress`; work that was done before (a resumed job) is no speed."""

    def __init__(self, total: float, already_done: float = 0.0) -> None:
        self.total = float(total)
        self.done = float(already_done)
        self._start_done = self.done
        self._start = time.monotonic()

    def resume(self) -> None:
        """Count speed from here: what was found done before is no speed."""
        self._start_done, self._start = self.done, time.monotonic()

    def skip(self, amount: float) -> None:
        """Count work that an earlier run did: it is done, and no speed."""
        self.done += amount
        self._start_done += amount

    def step(
        self, amount: float, stage: str, window: Window | None = None, figures: Mapping[str, float] | None = None
    ) -> Progress:
        """Add ``amount`` of work and report it."""
        self.done += amount
        worked = self.done - self._start_done
        elapsed = time.monotonic() - self._start
        left = (self.total - self.done) * elapsed / worked if worked > 0 and elapsed > 0.2 else None
        return Progress(self.done, self.total, stage, window, None if left is None else max(0.0, left), figures or {})

    def handing(self, progress: Progress) -> Generator[Progress, None, None]:
        """Yield ``progress``; what passes before the caller asks for more (a pause) is no work."""
        given = time.monotonic()
        yield progress
        self._start += time.monotonic() - given

    def reach(
        self, done: float, stage: str, figures: Mapping[str, float] | None = None, resumed: bool = False
    ) -> Progress:
        """Report that ``done`` of the work is done in all; ``resumed``: an earlier call did it, which is no speed."""
        if resumed:
            self.done = max(self.done, done)
            self.resume()
        return self.step(max(0.0, done - self.done), stage, figures=figures)
