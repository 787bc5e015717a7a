"""Long work behind a widget: progress, pause, cancel, errors, and no thread after the window is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest
from qtpy.QtWidgets import QWidget

from napari_isdnet.progress import Progress
from napari_isdnet.widgets._job import JobBar, describe_time
from napari_isdnet.widgets._worker import Job


def endless(log: list[str]) -> Generator[Progress, None, None]:
    try:
        count = 0
        while True:
            count += 1
            log.append("step")
            threading.Event().wait(0.002)
            yield Progress(count % 100, 100, "working", seconds_left=7)
    finally:
        log.append("closed")


def counted(total: int) -> Generator[Progress, None, str]:
    for done in range(total):
        yield Progress(done + 1, total, "counting")
    return "result"


def test_result_and_items_arrive_in_order_on_the_main_thread(qtbot) -> None:
    threads, items, results = set(), [], []
    job = Job(lambda: counted(500))
    job.yielded.connect(lambda new: (items.extend(new), threads.add(threading.current_thread())))
    job.returned.connect(lambda r: (results.append(r), threads.add(threading.current_thread())))
    with qtbot.waitSignal(job.ended, timeout=5000):
        job.start()
    assert [item.done for item in items] == list(range(1, 501))
    assert results == ["result"]
    assert threads == {threading.main_thread()}
    assert not job.running


def test_cancel_closes_the_generator_and_tells_so_once(qtbot) -> None:
    log: list[str] = []
    told: list[str] = []
    job = Job(lambda: endless(log))
    job.cancelled.connect(lambda: told.append("cancelled"))
    job.returned.connect(lambda _: told.append("returned"))
    job.start()
    qtbot.waitUntil(lambda: log.count("step") > 3)
    with qtbot.waitSignal(job.ended, timeout=5000):
        job.cancel()
    assert told == ["cancelled"]
    assert log[-1] == "closed"


def test_pause_takes_no_further_step(qtbot) -> None:
    log: list[str] = []
    at_it, go_on = threading.Event(), threading.Event()

    def work() -> Generator[Progress, None, None]:
        for step in endless(log):
            at_it.set()
            go_on.wait(10)
            yield step

    told: list[Progress] = []
    job = Job(work)
    job.progressed.connect(told.append)
    job.start()
    assert at_it.wait(10)
    job.pause()
    go_on.set()
    qtbot.waitUntil(lambda: len(told) == 1)  # the step at hand is over
    qtbot.wait(50)
    assert log == ["step"]
    job.resume()
    qtbot.waitUntil(lambda: len(log) > 1)
    job.stop()
    assert log[-1] == "closed"


def test_an_error_reaches_the_main_thread(qtbot) -> None:
    def broken() -> Generator[Progress, None, None]:
        yield Progress(1, 2, "first")
        raise RuntimeError("disk full")

    errors: list[BaseException] = []
    bar = JobBar()
    qtbot.addWidget(bar)
    job = bar.run(broken, on_error=errors.append)
    with qtbot.waitSignal(job.ended, timeout=5000):
        pass
    assert [str(e) for e in errors] == ["disk full"]
    assert not bar.running


def test_bar_shows_stage_share_and_time_and_its_buttons_work(qtbot) -> None:
    log: list[str] = []
    bar = JobBar()
    qtbot.addWidget(bar)
    bar.show()
    job = bar.run(lambda: endless(log), title="Segmenting")
    qtbot.waitUntil(lambda: "7 s left" in bar.label.text())
    assert bar.label.text().startswith("working · ")
    bar.pause_button.click()
    assert job.paused
    assert bar.label.text() == "Paused"
    bar.pause_button.click()
    assert not job.paused
    with qtbot.waitSignal(bar.ended, timeout=5000):
        bar.cancel_button.click()
    assert bar.isHidden()
    assert log[-1] == "closed"


def test_destroying_the_window_in_the_middle_ends_the_thread(qtbot) -> None:
    log: list[str] = []
    window = QWidget()
    bar = JobBar(window)
    bar.run(lambda: endless(log))
    qtbot.waitUntil(lambda: "step" in log)
    window.deleteLater()
    qtbot.waitUntil(lambda: "closed" in log)


def test_a_second_run_replaces_the_first(qtbot) -> None:
    log: list[str] = []
    results: list[str] = []
    bar = JobBar()
    qtbot.addWidget(bar)
    bar.run(lambda: endless(log))
    qtbot.waitUntil(lambda: log.count("step") > 3)
    bar.run(lambda: counted(3), on_result=results.append)
    qtbot.waitUntil(lambda: results == ["result"] and log[-1] == "closed")  # the first ends after the step at hand


@pytest.mark.parametrize("when", ["in the last step", "before it is told", "told"])
def test_a_result_that_nobody_is_told_of_is_dropped_on_the_worker_thread(qtbot, when: str) -> None:
    at_it, go_on = threading.Event(), threading.Event()
    results: list[str] = []
    dropped: list[tuple[str, bool]] = []

    def work() -> Generator[Progress, None, str]:
        yield Progress(0, 1, "opening")
        at_it.set()
        go_on.wait(10)
        return "file"

    bar = JobBar()
    qtbot.addWidget(bar)
    job = bar.run(
        work, results.append, drop=lambda x: dropped.append((x, threading.current_thread() is threading.main_thread()))
    )
    assert at_it.wait(10)
    if when == "in the last step":
        bar.abandon()
    go_on.set()
    if when == "before it is told":
        while not job._news or job._news[-1] != ("returned", "file"):  # no events are processed meanwhile
            time.sleep(0.001)
        bar.abandon()
    qtbot.waitUntil(lambda: not job.alive and bool(results or dropped), timeout=10_000)
    assert results == (["file"] if when == "told" else [])
    assert dropped == ([] if when == "told" else [("file", False)])


def test_time_is_said_as_people_say_it() -> None:
    assert [describe_time(t) for t in (None, 0.2, 42, 600, 7200)] == [
        "",
        "1 s left",
        "42 s left",
        "10 min left",
        "2.0 h left",
    ]
