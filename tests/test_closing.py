"""Closing a source, or a file, while another thread reads from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceInfo, run
from napari_isdnet.io.files import PositionalFile
from napari_isdnet.io.wsi import SlideSource
from napari_isdnet.window import Window

ALL = Window(0, 0, 8, 8)


class Held:
    """A call that says when it has begun, and goes on when it is told."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.begun, self.go = call, threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self.go.wait(10)
        return self.call(*arguments)


class Reader(threading.Thread):
    """A thread that reads once and keeps what it got."""

    def __init__(self, read: Callable[[], Any], held: Held) -> None:
        super().__init__()
        self.read, self.result = read, None
        self.start()
        assert held.begun.wait(10)

    def run(self) -> None:
        self.result = self.read()


def test_a_file_that_is_closed_while_it_is_read_gives_its_own_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 8)
    file = PositionalFile(tmp_path / "a")
    slow = file._read_some = Held(file._read_some)  # type: ignore[method-assign]
    reader = Reader(lambda: file.read(0, 8), slow)
    number = file._descriptor
    file.close()
    with pytest.raises(InputError, match="a was closed; open it again"):
        file.read(0, 8)
    other = PositionalFile(tmp_path / "b")  # takes the first number that is free
    slow.go.set()
    reader.join()
    assert reader.result == b"a" * 8
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    file.close()
    other.close()


class Slide:
    """What is used of an OpenSlide; reading a closed one ends the process, here it is an error."""

    level_downsamples = (1.0,)

    def __init__(self) -> None:
        self.closed = 0
        self.slow = Held(self._pixels)

    def _pixels(self, corner: Any, level: int, size: tuple[int, int]) -> Any:
        assert not self.closed
        return np.full((size[1], size[0], 4), 7, np.uint8)

    def read_region(self, *arguments: Any) -> Any:
        return self.slow(*arguments)

    def close(self) -> None:
        self.closed += 1


def test_a_slide_is_closed_by_the_last_who_reads(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").touch()
    slide = Slide()
    info = SourceInfo("a", ((8, 8),), 4, np.dtype(np.uint8), "slide", alpha=3)
    source = SlideSource(tmp_path / "a.mrxs", slide, info, 1)
    reader = Reader(lambda: source.read(ALL), slide.slow)
    source.close()
    assert slide.closed == 0
    with pytest.raises(InputError, match="a was closed"):
        source.read(ALL)
    slide.slow.go.set()
    reader.join()
    np.testing.assert_array_equal(reader.result, np.full((8, 8, 4), 7, np.uint8))
    assert slide.closed == 1
    source.close()
    assert slide.closed == 1


def test_a_window_with_a_bad_tile_is_over_when_no_tile_is_read_any_more() -> None:
    slow = Held(lambda: None)
    released = threading.Timer(0.2, slow.go.set)

    def tile(job: int) -> None:
        if job == 0:
            assert slow.begun.wait(10)
            released.start()
            raise ValueError("bad")
        slow()

    with pytest.raises(ValueError, match="bad"):
        run(tile, range(16), 2)
    assert slow.go.is_set()
