"""One process at a time: real processes, a disk without locks, and lock files that go away."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from napari_isdnet.annotation.lock import FolderLock
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import alone

ADD = """
import sys, time
from pathlib import Path
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import alone
path, added = Path(sys.argv[1]), 0
while added < 50:
    try:
        with alone(path):
            path.write_text(str(int(path.read_text() or 0) + 1))
            added += 1
    except InputError:
        time.sleep(0.002)
"""
NO_LOCKS = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.lockf = fcntl.flock = refuse
"""
HOLD = """
import sys
from pathlib import Path
from napari_isdnet.annotation.lock import FolderLock
FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_processes_that_come_again_until_they_may_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count.txt"
    path.write_text("")
    running = [subprocess.Popen([sys.executable, "-c", ADD, str(path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert path.read_text() == "150"
    assert [p.name for p in tmp_path.iterdir()] == ["count.txt"]  # no lock stays behind


def test_a_second_writer_gets_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.csv"
    second = alone(path)
    with alone(path), pytest.raises(InputError, match=r"out\.csv is being written by process \d+ on .*; wait for it"):
        second.__enter__()
    with alone(path):  # given back
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="its locks are others")
def test_on_a_disk_without_locks_projects_open_and_the_process_id_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    other = subprocess.Popen(
        [sys.executable, "-c", NO_LOCKS + HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"open in another window or process \(process {other.pid} on") as caught:
        FolderLock(tmp_path)
    [file] = tmp_path.iterdir()
    assert str(caught.value).endswith(f"; this disk has no locks, so if that process has ended, delete {file}.")
    other.kill()
    other.communicate()
    lock = FolderLock(tmp_path)  # its holder is dead
    with pytest.raises(InputError, match="open in another window"):
        FolderLock(tmp_path)
    lock.release()
    file.write_text("12 another-machine")  # whether it is alive cannot be known from here
    with pytest.raises(InputError, match=r"process 12 on another-machine.* delete .*lock"):
        FolderLock(tmp_path)
    file.unlink()
    FolderLock(tmp_path).release()
