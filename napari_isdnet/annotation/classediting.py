"""The part of the annotation store that edits its class list."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from napari_isdnet.annotation import classlist
from napari_isdnet.annotation.classlist import PLACEHOLDERS, AnnotationClass, Classes
from napari_isdnet.annotation.counts import Counts, Place
from napari_isdnet.annotation.saving import State
from napari_isdnet.classes import ClassInfo, index_of
from napari_isdnet.window import Window


class ClassEditing:
    """Every edit is a journal entry and is undone like a stroke; class k is always annotation value k + 1."""

    _lock: threading.RLock  # type: ignore[valid-type]
    _now: State
    _record: Any

    def chunk_counts(self) -> dict[Place, Counts]:
        """Labelled pixels of every chunk."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Names and colours; class k is annotation value k + 1."""
        raise NotImplementedError

    @property
    def class_list(self) -> tuple[AnnotationClass, ...]:
        """The classes with their shortcuts."""
        return self._now.classes

    def _set_classes(self, classes: Classes, table: classlist.Table | None = None) -> list[Window]:
        fields: dict[str, Any] = {"classes": [c.to_json() for c in classes]}
        if table is not None:
            fields["table"] = table.tolist()
        return self._record("classes", fields)

    def drop_placeholders(self, kept: Sequence[str]) -> None:
        """Drop the classes that a new annotation begins with, but for those called as one of ``kept``.

        Only where they are all there are, and nothing is painted: else somebody means them.
        """
        with self._lock:
            painted = any(any(counts.values()) for counts in self.chunk_counts().values())
            if painted or [info.name for info in self.classes] != list(PLACEHOLDERS):
                return
            found = [index_of(name, PLACEHOLDERS) for name in kept]
            left = tuple(item for index, item in enumerate(self._now.classes) if index in found)
            if len(left) < len(PLACEHOLDERS):
                self._set_classes(left)

    def add_class(self, name: str, color: str | Sequence[int] | None = None) -> int:
        """A new class at the end; returns its index."""
        with self._lock:
            self._set_classes(classlist.added(self._now.classes, name, color))
            return len(self.classes) - 1

    def rename_class(self, index: int, name: str) -> None:
        """Another name; pixels stay."""
        with self._lock:
            self._set_classes(classlist.renamed(self._now.classes, index, name))

    def recolor_class(self, index: int, color: str | Sequence[int]) -> None:
        """Another colour."""
        with self._lock:
            self._set_classes(classlist.recolored(self._now.classes, index, color))

    def set_shortcut(self, index: int, shortcut: str | None) -> None:
        """Another key; a class that had it loses it."""
        with self._lock:
            self._set_classes(classlist.with_shortcut(self._now.classes, index, shortcut))

    def merge_classes(self, index: int, target: int) -> list[Window]:
        """Class ``index`` becomes part of class ``target``; later classes move down by one. Can be undone."""
        with self._lock:
            return self._set_classes(*classlist.merged_into(self._now.classes, index, target))

    def remove_class(self, index: int) -> list[Window]:
        """Class ``index`` goes, its pixels become unlabelled; later classes move down by one. Can be undone."""
        with self._lock:
            return self._set_classes(*classlist.removed(self._now.classes, index))
