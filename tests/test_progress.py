"""What is done never goes back, and the time that is left follows the speed of this run alone."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from napari_isdnet import progress
from napari_isdnet.progress import Clock, Progress, result_of


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_the_time_left_is_that_of_the_work_left_at_the_speed_so_far(now: list[float]) -> None:
    clock = Clock(10)
    now[0] += 0.1
    assert clock.step(1, "first").seconds_left is None  # too early to tell
    now[0] += 1.9
    step = clock.step(3, "first", figures={"loss": 0.5})
    assert (step.done, step.total, step.fraction, step.stage) == (4, 10, 0.4, "first")
    assert step.seconds_left == pytest.approx(3.0)
    assert step.figures == {"loss": 0.5}
    now[0] += 8
    assert clock.step(6, "second").seconds_left == 0


def test_work_of_an_earlier_run_is_no_speed(now: list[float]) -> None:
    clock = Clock(10, already_done=8)
    now[0] += 4
    assert clock.step(1, "write").seconds_left == pytest.approx(4)
    clock = Clock(10)
    now[0] += 2
    clock.step(2, "read")
    clock.skip(6)  # found done
    now[0] += 2
    step = clock.step(1, "write")
    assert step.done == 9
    assert step.seconds_left == pytest.approx(4 / 3)  # three in four seconds


def test_a_part_of_a_job_is_told_as_one_of_the_whole() -> None:
    half = Progress(2, 4, "a", seconds_left=10.0, figures={"loss": 1.0}).within(0.2, 0.6)
    assert (half.done, half.total, half.stage, half.figures) == (0.5, 1.0, "a", {"loss": 1.0})
    assert half.seconds_left == pytest.approx(10 * 0.5 / 0.3)  # 0.3 of the whole in 10 s, and 0.5 is left
    assert Progress(4, 4, "a", seconds_left=0.0).within(0.2, 0.6).fraction == pytest.approx(0.8)


def test_a_result_is_what_the_steps_end_with_and_a_stop_lets_them_clean_up() -> None:
    ended = []

    def steps() -> Generator[int, None, str]:
        try:
            yield 1
            yield 2
            return "result"
        finally:
            ended.append(True)

    shown: list[int] = []
    assert result_of(steps(), shown.append) == "result"
    assert shown == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        result_of(steps(), lambda _: stop())
    assert ended == [True, True]


def stop() -> None:
    raise KeyboardInterrupt


def test_what_the_caller_does_with_a_step_is_no_work(now: list[float]) -> None:
    clock = Clock(4)
    now[0] += 1
    handed = clock.handing(clock.step(1, "train"))
    assert next(handed).seconds_left == 3
    now[0] += 100  # a pause
    assert list(handed) == []
    now[0] += 1
    assert clock.step(1, "train").seconds_left == 2


def test_fractions_stay_between_0_and_1() -> None:
    assert Progress(3, 2, "a").fraction == 1
    assert Progress(0, 0, "nothing to do").fraction == 1
    assert Progress(1, 4, "a").fraction == 0.25


def test_reaching_never_goes_back_and_what_was_done_before_is_no_speed(now: list[float]) -> None:
    clock = Clock(10)
    now[0] += 1
    found = clock.reach(6, "resumed", resumed=True)
    assert (found.done, found.seconds_left) == (6, None)  # nothing was timed yet
    now[0] += 2
    step = clock.reach(7, "train", {"loss": 1.0})
    assert (step.done, step.seconds_left, step.figures) == (7, pytest.approx(6), {"loss": 1.0})
    assert clock.reach(3, "validate").done == 7
