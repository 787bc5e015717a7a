"""Projects that several docks of one window work on: opened once, closed with the last user. Main thread only.

The Annotate dock paints into a project while the Fine-tune dock reads it, and only one of them could hold its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.project import Project, project_folder
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import quick_identity

Save = tuple[Callable[[], None], Callable[[float], bool]]


@dataclass
class _Shared:
    project: Project
    users: int = 1
    saves: list[Save] = field(default_factory=list)


_open: dict[Path, _Shared] = {}

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
    if shared is not None and shared.saves:
        raise InputError(f"The annotation {where} is open in another window; paint there, or close it there first.")


def close_project(project: Project, painter: bool = False) -> None:
    """One user less (``painter``: the one that paints); the last one closes it."""
    where = project.folder.absolute()
    shared = _open.get(where)
    if shared is None or shared.project is not project:
        project.close()
        return
    if painter:
        shared.saves = []
    shared.users -= 1
    if not shared.users:
        del _open[where]
        project.close()


def before_training(project: Project | None, hand_over: Callable[[], None], wait: Callable[[float], bool]) -> None:
    """Say how what is being painted gets into the store: ``hand_over()`` at once, then ``wait(seconds)``."""
    for shared in _open.values():
        if shared.project is project:
            shared.saves = [(hand_over, wait)]


def hand_over(project: Project) -> Callable[[float], bool]:
    """Ask the painters to save; returns what waits for it (for a worker thread)."""
    saves = [save for shared in _open.values() if shared.project is project for save in shared.saves]
    for save, _ in saves:
        save()
    return lambda seconds: all(wait(seconds) for _, wait in saves)
