"""Units of spilled maps: recorded in order, never before their bytes are on the disk, and none forgotten."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from napari_isdnet.engine.commits import Commits
from napari_isdnet.exceptions import InputError

SUMS = np.arange(3.0)


class Disk:
    """A storage whose syncs wait to be let through, one by one."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.error: Exception | None = None
        self.synced = 0

    def sync(self) -> None:
        assert self.let.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        self.synced += 1


class Log:
    """Notes what is recorded, by which thread, and how many syncs there had been."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.units, self.threads = disk, list[int](), set[str]()

    def record(self, stage: str, unit: int, sums: Any) -> None:
        assert self.disk.synced > len(self.units), "recorded before it was on the disk"
        assert stage == "fused"
        np.testing.assert_array_equal(sums, SUMS)
        self.units.append(unit)
        self.threads.add(threading.current_thread().name)


def made(most: int) -> tuple[Disk, Log, Commits]:
    disk = Disk()
    log = Log(disk)
    return disk, log, Commits(log, most)  # type: ignore[arg-type]


def test_units_are_recorded_once_they_are_on_the_disk() -> None:
    disk, log, commits = made(most=4)
    for unit in range(4):
        commits.add(disk, "fused", unit, SUMS)  # type: ignore[arg-type]
    assert log.units == [], "nothing waits for the disk while few are under way"
    disk.let.release(4)
    commits.flush()
    assert log.units == [0, 1, 2, 3]
    assert log.threads == {threading.current_thread().name}  # a ledger is no place for two threads
    commits.close()


def test_few_are_under_way() -> None:
    disk, log, commits = made(most=2)
    disk.let.release(1)
    for unit in range(3):
        commits.add(disk, "fused", unit, SUMS)  # type: ignore[arg-type]
    assert log.units == [0]
    disk.let.release(2)
    commits.close()
    assert log.units == [0, 1, 2]


def test_a_full_disk_is_told_and_what_did_not_arrive_is_not_recorded() -> None:
    before = set(threading.enumerate())  # others may end meanwhile
    disk, log, commits = made(most=9)
    commits.add(disk, "fused", 0, SUMS)  # type: ignore[arg-type]
    disk.let.release(1)
    commits.flush()
    assert set(threading.enumerate()) - before
    for unit in (1, 2):
        commits.add(disk, "fused", unit, SUMS)  # type: ignore[arg-type]
    disk.error = InputError("The disk is full")
    disk.let.release(2)
    with pytest.raises(InputError, match="full"):
        commits.close()
    assert log.units == [0]
    assert not set(threading.enumerate()) - before


def test_after_a_failure_nothing_is_recorded_whatever_the_disk_says_then() -> None:
    disk, log, commits = made(most=9)
    for unit in range(3):
        commits.add(disk, "fused", unit, SUMS)  # type: ignore[arg-type]
    disk.error = InputError("The disk is full")
    disk.let.release(1)
    with pytest.raises(InputError, match="full"):
        commits.flush()
    disk.error = None  # Linux tells of lost pages once
    disk.let.release(9)
    commits.close()
    assert log.units == []
