"""Layers that never block the window: pyramids of duck arrays, painted again when more is known.

``lazy_levels(pyramid)`` is what napari gets as multiscale data. ``watch(viewer)`` ties every such layer to its
pyramid: new tiles cause a throttled ``layer.refresh`` on the main thread, and removing the layer or closing the
window ends the pyramid's threads.
"""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QCoreApplication, QObject, Qt, Signal
from qtpy.QtWidgets import QApplication, QMainWindow, QWidget

from napari_isdnet.engine.tiles import LivePyramid
from napari_isdnet.engine.viewqueue import close_later
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._job import timer
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.window import Window

REFRESH_MS = 80
#: Seconds the main thread spent answering napari (see :mod:`napari_isdnet.widgets._responsiveness`).
answer_seconds = 0.0


class LazyLevel:
    """One level of a live pyramid, as much of an array as napari asks of one.

    Indexing takes integers and slices of step 1 and answers at once with what is known. ``np.asarray`` of the coarsest
    level is the pyramid's own overview (filled in place, so napari's copy of it keeps up); of another level it reads
    the whole level, and refuses one that is larger than 1 GiB.
    """

    def __init__(self, pyramid: LivePyramid, level: int) -> None:
        self.pyramid = pyramid
        self.level = level
        channels = () if pyramid.channels is None else (pyramid.channels,)
        self.shape: tuple[int, ...] = (*pyramid.shapes[level], *channels)
        self.dtype = pyramid.dtype
        self.ndim = len(self.shape)
        self.chunks = (pyramid.chunk, pyramid.chunk, *channels)

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyLevel:
        """For napari's Duplicate: a copy shows the same pyramid, whose pixels nobody changes."""
        return self

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod([int(n) for n in self.shape], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes the level would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        global answer_seconds
        start = time.perf_counter()
        keys = _full_key(key, self.ndim)
        (top, bottom, row), (left, right, column) = (_span(k, n) for k, n in zip(keys[:2], self.shape[:2], strict=True))
        window = Window.from_bounds(top, left, bottom, right)
        pixels = self.pyramid.answer(self.level, window)
        result: npt.NDArray[Any] = pixels[(row, column, *keys[2:])]
        answer_seconds += time.perf_counter() - start
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        last = len(self.pyramid.shapes) - 1
        if self.level == last:
            array = self.pyramid.overview()
            return array if dtype is None and not copy else np.array(array, dtype=dtype, copy=bool(copy) or None)
        if self.nbytes > 2**30:
            rows, columns = self.shape[:2]
            raise InputError(
                f"Level {self.level} has {rows} x {columns} pixels, too many to hold at once; export it to a file, "
                "or take a coarser level."
            )
        array = self.pyramid.read(self.level, Window.whole(self.pyramid.shapes[self.level]))
        return array if dtype is None else array.astype(dtype)


def _full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in [k for k in keys if k is Ellipsis]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys = (*keys[:at], *(slice(None),) * (ndim - len(keys) + 1), *keys[at + 1 :])
    if len(keys) > ndim:
        raise IndexError(f"{len(keys)} indices for {ndim} axes")
    return (*keys, *(slice(None),) * (ndim - len(keys)))


def _span(key: Any, length: int) -> tuple[int, int, Any]:
    """(first, one past the last, index into what was cut out) for an integer or a slice."""
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if step < 1:
            raise IndexError("a lazy level is read forwards; use a slice with a positive step")
        return start, max(start, stop), slice(None, None, step)
    index = int(key)
    if not -length <= index < length:
        raise IndexError(f"index {index} is outside an axis of {length}")
    index %= length
    return index, index + 1, 0


def lazy_levels(pyramid: LivePyramid) -> list[LazyLevel]:
    """The levels, finest first, for ``viewer.add_image(levels, multiscale=len(levels) > 1)``."""
    return [LazyLevel(pyramid, level) for level in range(len(pyramid.shapes))]


def layer_data(pyramid: LivePyramid) -> tuple[Any, bool]:
    """``(data, multiscale)`` as napari wants them: a single level is passed as itself."""
    levels = lazy_levels(pyramid)
    return (levels, True) if len(levels) > 1 else (levels[0], False)


class ReadLevel:
    """One level of a lazy layer as an array for whoever computes with it: slices wait until they are read."""

    def __init__(self, level: LazyLevel) -> None:
        self._level = level
        self.shape, self.dtype, self.ndim = level.shape, level.dtype, level.ndim

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        rows, columns, *rest = _full_key(key, self.ndim)
        (top, bottom, row), (left, right, column) = _span(rows, self.shape[0]), _span(columns, self.shape[1])
        pixels = self._level.pyramid.read(self._level.level, Window.from_bounds(top, left, bottom, right))
        result: npt.NDArray[Any] = pixels[(row, column, *rest)]
        return result


def pyramid_of(layer: Any) -> LivePyramid | None:
    """The live pyramid behind a layer, or None for any other layer."""
    data: Any = getattr(layer, "data", None)
    if getattr(layer, "multiscale", False) and len(data) > 0:
        data = data[0]
    return data.pyramid if isinstance(data, LazyLevel) else None


_painters: weakref.WeakKeyDictionary[LivePyramid, list[Painter]] = weakref.WeakKeyDictionary()
"""Of every pyramid, those of the layers that show it: a duplicate of a layer shows the same one."""


class Painter(QObject):
    """Repaints one layer at most every ``REFRESH_MS`` while its pyramid learns more. Lives on the main thread."""

    _changed = Signal()

    def __init__(self, layer: Any, pyramid: LivePyramid, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._layer = weakref.ref(layer)
        self.pyramid = pyramid
        self._waiting = False
        self._thumbnail_at = 0.0
        self._timer = timer(self, REFRESH_MS, self.paint, once=True)
        self._changed.connect(self._schedule, Qt.ConnectionType.QueuedConnection)
        painters = _painters.setdefault(pyramid, [])
        painters.append(self)

        def tell() -> None:  # worker thread
            for painter in tuple(painters):
                painter._tell()

        pyramid.on_change = tell
        self._schedule()  # something may have come before we listened

    def _tell(self) -> None:  # worker thread
        if not self._waiting:
            self._waiting = True
            with suppress(RuntimeError):  # its layer has gone just now; the others of this pyramid are still to be told
                self._changed.emit()

    def _schedule(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def paint(self) -> None:
        """Show what is known now."""
        self._waiting = False
        if notice := getattr(self.pyramid, "notice", ""):
            self.pyramid.notice = ""  # type: ignore[attr-defined]
            notify_error(InputError(notice))
        layer = self._layer()
        if layer is not None:
            now = time.monotonic()
            thumbnail = now - self._thumbnail_at > 1.0  # it is small, but not worth a repaint at every tile
            if thumbnail:
                self._thumbnail_at = now
            layer.refresh(extent=False, thumbnail=thumbnail, highlight=False)

    def close(self, wait: bool = True) -> None:
        """Stop repainting; the last painter of a pyramid ends its threads, without ``wait`` after the step at hand."""
        with suppress(RuntimeError):  # where the process ends with a window open, Qt's side of the timer may be gone
            self._timer.stop()
        painters = _painters.get(self.pyramid, [])
        if self in painters:
            painters.remove(self)
        if painters:  # another layer still shows it
            return
        self.pyramid.on_change = None
        if wait:
            self.pyramid.close()
        else:
            close_later(self.pyramid.close)


class Watch(QObject):
    """Ties the lazy layers of one viewer to their pyramids; made by :func:`watch`."""

    def __init__(self, viewer: Any) -> None:
        from napari_isdnet.widgets._building import Builder

        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._builder = Builder(lambda: main_window(self._viewer()))
        self._painters: dict[int, Painter] = {}
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removing.connect(self._removing)
        viewer.layers.events.removed.connect(self._removed)
        for layer in viewer.layers:
            self.add(layer)

    def _inserted(self, event: Any) -> None:
        self.add(event.value)

    def _removing(self, _event: Any) -> None:
        viewer = self._viewer()
        if viewer is not None:
            make_canvas_current(viewer)

    def _removed(self, event: Any) -> None:
        painter = self._painters.pop(id(event.value), None)
        if painter is not None:
            self._end(painter)

    def _end(self, painter: Painter) -> None:
        painter.close(wait=False)
        painter.deleteLater()
        if not _painters.get(painter.pyramid):
            self._builder.drop(painter.pyramid)

    def add(self, layer: Any) -> None:
        """Tie ``layer``, if it is a lazy one, to its pyramid (again, after its data was replaced)."""
        from napari_isdnet.widgets._saving import shield

        shield(layer)
        pyramid = pyramid_of(layer)
        old = self._painters.get(id(layer))
        if pyramid is None or (old is not None and old.pyramid is pyramid):
            return
        if old is not None:
            self._end(old)
        self._painters[id(layer)] = Painter(layer, pyramid, self)
        self._builder.add(pyramid)

    def close(self) -> None:
        """End every pyramid of the viewer."""
        for painter in self._painters.values():
            painter.close()
        self._painters.clear()
        _watches[:] = [entry for entry in _watches if entry is not self]


_watches: list[Watch] = []


def watch(viewer: Any) -> Watch:
    """Make lazy layers of ``viewer`` repaint themselves and end with it; calling it again changes nothing."""
    for existing in _watches:
        if existing._viewer() is viewer:
            return existing
    entry = Watch(viewer)
    _watches.append(entry)
    window = main_window(viewer)
    if window is not None:
        window.destroyed.connect(lambda *_: entry.close())
    application = QCoreApplication.instance()
    if application is not None:
        application.aboutToQuit.connect(entry.close)
    return entry


def real_viewer(viewer: Any) -> Any:
    """The viewer itself where napari hands out its proxy.

    Through the proxy every layer is another object at every look, so that what belongs to a layer is not found again.
    """
    return getattr(viewer, "__wrapped__", viewer)


def main_window(viewer: Any) -> Any:
    """The Qt main window of a napari viewer, or None for a model without one."""
    window = getattr(getattr(viewer, "window", None), "_qt_window", None)
    if window is not None:
        return window
    windows = [w for w in QApplication.topLevelWidgets() if isinstance(w, QMainWindow)]
    return windows[0] if windows else None


def canvases(window: QWidget) -> list[Any]:
    """The OpenGL widgets of a main window."""
    return [w for w in window.findChildren(QWidget) if w.inherits("QOpenGLWidget")]


def make_canvas_current(viewer: Any) -> None:
    """Make the OpenGL context of the viewer's canvas current.

    napari 0.9 deletes the shader programs of a removed layer at once, whichever context is current: mostly the one
    with which Qt puts the window together. It shares the programs but not the state, so that the canvas may go on to
    draw with a shader that is gone; Mesa's software OpenGL then reads through a null pointer and takes the process
    with it.
    """
    window = main_window(viewer)
    for canvas in canvases(window) if window is not None else ():
        if canvas.isValid():
            canvas.makeCurrent()
