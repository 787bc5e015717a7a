"""The part of the Annotate dock that edits the class list."""

from __future__ import annotations

from typing import Any

from qtpy.QtGui import QAction

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._annotate_files import Exchanging
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.window import Window


class ListingClasses(Exchanging):
    """What the table of classes and its buttons do."""

    def _connect_classes(self) -> None:
        self.classes.renamed.connect(lambda k, name: self._change(AnnotationStore.rename_class, k, name))
        self.classes.recolored.connect(lambda k, color: self._change(AnnotationStore.recolor_class, k, color))
        self.classes.rekeyed.connect(self._rekey)
        self.add_button.clicked.connect(self._add_class)
        self.remove_button.clicked.connect(self._remove_class)
        self.merge_menu.aboutToShow.connect(self._fill_merge_menu)

    def _change(self, change: Any, index: int, *values: Any) -> None:
        """Change the class at ``index`` of the list as it is shown."""
        self._save_editing()
        names = [c.info.name for c in self.classes.shown_classes]
        if index < len(names):
            self.controller.edit_class(names, index, change, *values)

    def _rekey(self, index: int, key: str) -> None:
        if key and (len(key) != 1 or key not in "123456789"):
            notify_error(InputError(f"The key of a class is one digit from 1 to 9, got '{key}'; or leave it empty."))
            self.classes.refill()
            return
        self._change(AnnotationStore.set_shortcut, index, key or None)

    def _add_class(self) -> None:
        def add(store: AnnotationStore) -> int:  # another one may be waiting
            names = {c.name for c in store.classes}
            free = (f"class {n}" for n in range(len(names) + 1, 1000))
            return store.add_class(next(name for name in free if name not in names))

        self._save_editing()
        self.controller.edit(add)

    def _remove_class(self) -> None:
        self._change(AnnotationStore.remove_class, self.controller.class_index)

    def _fill_merge_menu(self) -> None:
        self.merge_menu.clear()
        index = self.controller.class_index
        for target, item in enumerate(self.classes.shown_classes):
            if target != index:
                entry = QAction(item.info.name, self.merge_menu)
                entry.setToolTip(f"What is painted as the selected class becomes '{item.info.name}'")
                entry.triggered.connect(lambda _=False, name=item.info.name: self._change(merge_into, index, name))
                self.merge_menu.addAction(entry)


def merge_into(store: AnnotationStore, index: int, name: str) -> list[Window]:
    """Class ``index`` becomes part of the one called ``name``; raises :class:`InputError` where that is gone."""
    names = [c.name for c in store.classes]
    if name not in names:
        raise InputError(f"Class '{name}' is gone or has another name by now, so nothing was merged into it.")
    return store.merge_classes(index, names.index(name))
