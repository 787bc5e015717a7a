"""What a writer that was killed leaves beside its result: the next one removes what certainly nobody uses."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io import disk
from napari_isdnet.io.disk import replacing, write_atomic
from napari_isdnet.widgets._engine import map_folder

WRITER = """
import sys
from pathlib import Path
from napari_isdnet.io.disk import replacing

with replacing(Path(sys.argv[1]), overwrite=True) as temporary:
    temporary.write_bytes(b"half")
    temporary.with_name(temporary.name + ".plain.tif").write_bytes(b"half")
    temporary.with_name(temporary.name + ".store").mkdir()
    print(temporary.name.removesuffix(Path(sys.argv[1]).name), flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process in the middle of writing ``path``, and what its temporary names start with."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def write(path: Path) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(b"whole")


def test_what_a_killed_writer_left_goes_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    with writing(tmp_path / "a.tif") as (child, prefix):
        own = hidden(tmp_path)
        assert own == {prefix + name for name in ("a.tif", "a.tif.plain.tif", "a.tif.store", "lock")}
        write(tmp_path / "a.tif")
        assert hidden(tmp_path) == own
        (tmp_path / f"{prefix}old.b.zarr").mkdir()  # it was moved aside, and what takes its place did not come
        child.kill()
        child.wait()
        write(tmp_path / "c.tif")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "b.zarr", "c.tif"}


@pytest.mark.parametrize("doubt", ["another machine", "no locks", "its lock is gone"])
def test_what_may_be_in_use_stays(tmp_path: Path, doubt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(tmp_path / "a.tif") as (child, prefix):
        child.kill()
        child.wait()
    if doubt == "another machine":
        monkeypatch.setattr(disk.socket, "gethostname", lambda: "elsewhere")
    elif doubt == "no locks":

        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(disk, "lock_descriptor", refuse)
    else:
        (tmp_path / f"{prefix}lock").unlink()
    left = hidden(tmp_path)
    write(tmp_path / "a.tif")
    assert hidden(tmp_path) == left
    assert f"{prefix}a.tif" in left
    assert (tmp_path / "a.tif").read_bytes() == b"whole"


def test_writers_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(replacing(tmp_path / "a.tif", overwrite=True)) for _ in range(3)]
        for number, temporary in enumerate(made):
            temporary.write_bytes(b"%d" % number)
        write_atomic(tmp_path / "b.json", b"{}")
        assert [path.read_bytes() for path in made] == [b"0", b"1", b"2"]
        command = [sys.executable, "-c", WRITER.replace("sys.stdin.read()", ""), str(tmp_path / "c.tif")]
        subprocess.run(command, check=True, capture_output=True)  # the locks still hold for another process
        assert all(path.exists() for path in made)
    assert (tmp_path / "a.tif").read_bytes() == b"0"  # the first came out last
    assert set() == disk._HELD


def test_many_may_write_one_small_file_at_once(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            write_atomic(tmp_path / "a.json", bytes([number]) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    assert len(set((tmp_path / "a.json").read_bytes())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_small_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(InputError, match="The disk is full"):
        write_atomic(tmp_path / "a.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_maps_that_a_killed_window_left_in_the_cache_go_with_the_next_view(tmp_path: Path) -> None:
    script = (
        "import os, sys; from contextlib import ExitStack; from pathlib import Path;"
        "from napari_isdnet.widgets._engine import map_folder;"
        "stack = ExitStack(); (map_folder(Path(sys.argv[1]), stack) / 'deep.map').touch(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(hidden(tmp_path)) == 2
    with ExitStack() as stack:
        own = map_folder(tmp_path, stack)
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {own.name}
    assert not list(tmp_path.iterdir())
