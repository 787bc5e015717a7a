"""Projects that several docks of one window work on: opened once, closed with the last user. Main thread only.

The Annotate dock paints into a project while the Fine-tune dock reads it, and only one of them could hold its lock.
Writing what waits can take many seconds (a stroke over a gigapixel is thousands of files), so a project is closed by a
thread, which counts as one of its users until it is done: whoever opens the project meanwhile goes on with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.project import Project, project_folder
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import quick_identity
from napari_isdnet.widgets._paint_queue import PaintQueue

PATIENCE_SECONDS = 0.3
"""So long the main thread waits for a project that is closed; nearly always it is closed by then."""

Save = tuple[Callable[[], None], Callable[[float], bool]]


@dataclass
class _Shared:
    project: Project
    users: int = 1
    painted: bool = False
    saves: list[Save] = field(default_factory=list)


_open: dict[Path, _Shared] = {}
_turn = threading.RLock()
"""Held by who counts users: those that close a project do so in threads."""

models_changed: list[Callable[[], None]] = []
"""Called when a project has got a model or takes another one into use; see :func:`tell_models`."""


def tell_models() -> None:
    """Say that the models of a project are others now."""
    for look in list(models_changed):
        look()


def folder_of(source: Any) -> Path:
    """Where the project of an open image lies, or would lie."""
    identity = quick_identity(source)
    file = identity.get("path")
    return project_folder(Path(file) if file else None, identity)


def open_project(source: Any, classes: Sequence[Any] = (), folder: Path | None = None) -> Project:
    """The project of an image, shared with whoever has it open in this process; see :meth:`Project.open`."""
    where = (Path(folder) if folder is not None else folder_of(source)).absolute()
    with _turn:
        shared = _open.get(where)
        if shared is None:
            shared = _open[where] = _Shared(Project.open(source, classes, where))
        else:
            shared.users += 1
        return shared.project


def project_in(folder: str | Path) -> Project | None:
    """The project in ``folder``, where it is open in this process."""
    shared = _open.get(Path(folder).absolute())
    return None if shared is None else shared.project


def check_not_painted(source: Any, folder: Path | None = None) -> None:
    """Raise :class:`InputError` where a dock of another window paints into the project of an image.

    Each dock shows, counts and takes back what it paints itself.
    """
    where = (Path(folder) if folder is not None else folder_of(source)).absolute()
    shared = _open.get(where)
    if shared is not None and shared.painted:
        raise InputError(f"The annotation {where} is open in another window; paint there, or close it there first.")


def close_project(
    project: Project, queue: PaintQueue | None = None, told: Callable[[Exception | None], None] = lambda _: None
) -> bool:
    """One user less (``queue``: of the one that paints; it is ended); the last one closes it.

    True where that is done already. What takes longer goes on in a thread, which a process that ends waits for, and
    which calls ``told`` at its end, with the error if there was one.
    """
    shared = _shared(project)
    if shared is not None and queue is not None:
        shared.painted, shared.saves = False, [(lambda: None, queue.wait)]
    # Not a daemon: it writes what was painted. Killed all the same, the next opening repeats it from the journal.
    thread = threading.Thread(target=_leave, args=(project, queue, told), name="isdnet-job-closing")
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return not thread.is_alive()


def _shared(project: Project) -> _Shared | None:
    with _turn:
        return next((shared for shared in _open.values() if shared.project is project), None)


def _leave(project: Project, queue: PaintQueue | None, told: Callable[[Exception | None], None]) -> None:
    failure: Exception | None = None
    if queue is not None:
        queue.close()
    # What takes long comes first: nobody can open a project while the last user closes it.
    with suppress(Exception):  # tried again, and told, by the closing
        project.store.flush()
    with _turn:
        shared = _shared(project)
        if shared is not None:
            shared.users -= 1
            if queue is not None:
                shared.saves = [save for save in shared.saves if save[1] != queue.wait]
        if shared is None or not shared.users:
            _open.pop(project.folder.absolute(), None)
            try:
                project.close()
            except Exception as error:
                failure = error
    told(failure)


def before_training(project: Project | None, hand_over: Callable[[], None], wait: Callable[[float], bool]) -> None:
    """Say how what is being painted gets into the store: ``hand_over()`` at once, then ``wait(seconds)``."""
    shared = None if project is None else _shared(project)
    if shared is not None:
        shared.painted, shared.saves = True, [(hand_over, wait)]


def hand_over(project: Project) -> Callable[[float], bool]:
    """Ask the painters to save; returns what waits for it (for a worker thread)."""
    shared = _shared(project)
    saves = [] if shared is None else list(shared.saves)
    for save, _ in saves:
        save()
    return lambda seconds: all(wait(seconds) for _, wait in saves)
