"""The ledger: exact payloads, refusals that name what differs, one process per job, and SIGKILL at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.engine.ledger import HEADER, LOG, Ledger, read_header
from napari_isdnet.exceptions import InputError

HEAD = {"image": {"path": "a.tif", "size": 7}, "model": "abc", "window": (512, 512)}


def test_new_then_resumed(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a.job", HEAD) as ledger:
        assert not ledger.done("shallow", 0)
        ledger.record("shallow", 0, np.array([0.1, 1e-300]))
        ledger.record("shallow", 12, {"seconds": 0.1, "sum": np.array([[1.0, -0.0]]), "names": ["a", None]})
        ledger.record("fuse", "all")
    with Ledger.open(tmp_path / "a.job", HEAD) as ledger:
        assert ledger.units("shallow") == [0, 12]
        assert ledger.done("fuse", "all")
        assert not ledger.done("fuse", 0)
        assert ledger.payload("fuse", "all") is None
        np.testing.assert_array_equal(ledger.payload("shallow", 0), [0.1, 1e-300])
        found = ledger.payload("shallow", 12)
        assert (found["seconds"], found["names"]) == (0.1, ["a", None])
        assert found["sum"].shape == (1, 2)
        assert np.signbit(found["sum"][0, 1])
        with pytest.raises(KeyError):
            ledger.payload("shallow", 1)
    assert read_header(tmp_path / "a.job") == json.loads(json.dumps(HEAD))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=64), max_size=20), st.floats())
def test_floats_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], one: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "x.job"
    vector = np.array(values, np.float64)
    with Ledger.open(path, {}) as ledger:
        ledger.record("s", 1, vector)
        ledger.record("s", 2, {"one": one})
    with Ledger.open(path, {}) as ledger:
        assert ledger.payload("s", 1).tobytes() == vector.tobytes()
        back = np.float64(ledger.payload("s", 2)["one"])
        assert back.tobytes() == np.float64(one).tobytes() or (np.isnan(back) and np.isnan(one))


def test_there_is_no_job_in_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "scene.tif").write_bytes(b"")
    assert read_header(tmp_path / "scene.tif" / "scene.job") is None


def test_only_float64_vectors_are_kept(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a.job", {}) as ledger, pytest.raises(TypeError, match="float64"):
        ledger.record("s", 0, np.zeros(3, np.float32))


def test_recording_again_replaces(tmp_path: Path) -> None:
    for payload in ({"v": 1}, {"v": 2}):
        with Ledger.open(tmp_path / "a.job", {}) as ledger:
            ledger.record("s", 0, payload)
    with Ledger.open(tmp_path / "a.job", {}) as ledger:
        assert ledger.payload("s", 0) == {"v": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "xyz"}, 'model = "abc", now it is "xyz"'),
        ({"image": {"path": "a.tif", "size": 8}}, "image.size = 7, now it is 8"),
        ({"window": [512, 256]}, "window = [512, 512], now it is [512, 256]"),
        ({"new": 1}, 'new = "nothing", now it is 1'),
        ({"model": "xyz", "new": 1}, "(and 1 more)"),
    ],
)
def test_another_header_is_refused_with_the_difference(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "a.job"
    with Ledger.open(path, HEAD) as ledger:
        ledger.record("s", 0)
    with pytest.raises(InputError) as caught:
        Ledger.open(path, HEAD | change)
    assert said in str(caught.value)
    assert "--overwrite" in str(caught.value)
    with Ledger.open(path, HEAD) as ledger:  # refusing changed nothing and gave the lock back
        assert ledger.done("s", 0)
    (path / "cache.bin").write_bytes(b"old")
    with Ledger.open(path, HEAD | change, overwrite=True) as ledger:
        assert not ledger.done("s", 0)
        assert not (path / "cache.bin").exists()


def test_overwrite_resumes_what_is_the_same_and_no_resume_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with Ledger.open(path, HEAD) as ledger:
        ledger.record("s", 0)
    with Ledger.open(path, HEAD, overwrite=True) as ledger:
        assert ledger.done("s", 0)
    with Ledger.open(path, HEAD, resume=False) as ledger:
        assert not ledger.done("s", 0)


def test_a_kill_while_starting_again_leaves_no_old_work(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    Ledger.open(path, HEAD).close()
    (path / HEADER).write_text('{"format": 1, "header": null}')  # what a start from zero writes first
    (path / "labels.ome.zarr").mkdir()
    with Ledger.open(path, HEAD):
        assert not (path / "labels.ome.zarr").exists()


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(InputError, match="something else"):
        Ledger.open(tmp_path / "photos", HEAD, overwrite=True)
    assert (tmp_path / "photos" / "cat.png").exists()
    with pytest.raises(InputError, match="is a file"):
        Ledger.open(tmp_path / "photos" / "cat.png", HEAD)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 9, "header": {}}', b"\xff\xfe"])
def test_damaged_headers_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.job"
    Ledger.open(path, HEAD).close()
    (path / HEADER).write_bytes(content)
    with pytest.raises(InputError, match=r"ledger\.json"):
        Ledger.open(path, HEAD)


def test_a_torn_last_line_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with Ledger.open(path, HEAD) as ledger:
        ledger.record("s", 0, {"v": 1})
        ledger.record("s", 1, {"v": 2})
    whole = (path / LOG).read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        (path / LOG).write_bytes(whole[:end])
        with Ledger.open(path, HEAD) as ledger:
            assert ledger.units("s") == [0]
            ledger.record("s", 2, {"v": 3})
        with Ledger.open(path, HEAD) as ledger:
            assert ledger.units("s") == [0, 2]
            assert ledger.payload("s", 2) == {"v": 3}


def test_a_damaged_line_counts_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with Ledger.open(path, HEAD) as ledger:
        for unit in range(3):
            ledger.record("s", unit, {"v": unit})
    lines = (path / LOG).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"v":1', b'"v":7')
    (path / LOG).write_bytes(b"".join(lines))
    with Ledger.open(path, HEAD) as ledger:
        assert ledger.units("s") == [0, 2]
        assert ledger.payload("s", 2) == {"v": 2}


def test_two_in_one_process_are_refused(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a.job", HEAD), pytest.raises(InputError, match=f"process {os.getpid()}"):
        Ledger.open(tmp_path / "a.job", HEAD)
    Ledger.open(tmp_path / "a.job", HEAD).close()


CHILD = textwrap.dedent(
    """
    import sys
    import numpy as np
    from napari_isdnet.engine.ledger import Ledger

    with Ledger.open(sys.argv[1], {"model": "m"}) as ledger:
        print("open", flush=True)
        for unit in range(100_000):
            if not ledger.done("s", unit):
                ledger.record("s", unit, np.random.default_rng(unit).normal(size=200))
                print(unit, flush=True)
    """
)


def test_a_job_that_another_process_makes_just_now_is_no_folder_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.job"
    path.mkdir()
    listed = Path.iterdir

    def late(self: Path) -> Iterator[Path]:
        monkeypatch.undo()
        with Ledger.open(path, HEAD) as other:
            other.record("s", 1)
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", late)
    with Ledger.open(path, HEAD) as ledger:
        assert ledger.units("s") == [1]


def _child(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_random_moments_loses_only_what_was_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    delays = random.Random(7)
    known: set[int] = set()
    for recorded in (0, 1, 5, 20):
        child = _child(path)
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(InputError, match=f"process {child.pid}"):  # it holds the lock while it lives
            Ledger.open(path, {"model": "m"})
        known |= {int(child.stdout.readline()) for _ in range(recorded)}
        time.sleep(delays.uniform(0.0, 0.05))
        child.kill()
        known |= {int(line) for line in child.stdout.read().splitlines() if line.strip()}
        child.wait()
        child.stdout.close()
        with Ledger.open(path, {"model": "m"}) as ledger:  # the dead process's lock is taken over
            units = ledger.units("s")
            assert known <= set(units)
            assert units == list(range(len(units)))
            for unit in units[:: max(1, len(units) // 50)]:
                expected = np.random.default_rng(unit).normal(size=200)
                assert ledger.payload("s", unit).tobytes() == expected.tobytes()
