"""The part of the Annotate dock that edits the class list."""

from __future__ import annotations

from typing import Any

from qtpy.QtGui import QAction

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._annotate_files import Exchanging
from napari_isdnet.widgets._notify import notify_error


class ListingClasses(Exchanging):
    """What the table of classes and its buttons do."""

    def _connect_classes(self) -> None:
        self.classes.renamed.connect(lambda k, name: self._edit(lambda store: store.rename_class(k, name)))
        self.classes.recolored.connect(lambda k, color: self._edit(lambda store: store.recolor_class(k, color)))
        self.classes.rekeyed.connect(self._rekey)
        self.add_button.clicked.connect(self._add_class)
        self.remove_button.clicked.connect(self._remove_class)
        self.merge_menu.aboutToShow.connect(self._fill_merge_menu)

    def _edit(self, change: Any) -> None:
        self._save_editing()
        self.controller.edit(change)

    def _rekey(self, index: int, key: str) -> None:
        if key and (len(key) != 1 or key not in "123456789"):
            notify_error(InputError(f"The key of a class is one digit from 1 to 9, got '{key}'; or leave it empty."))
            self.classes.refill()
            return
        self._edit(lambda store: store.set_shortcut(index, key or None))

    def _add_class(self) -> None:
        names = {c.name for c in self.controller.store.classes}
        name = next(f"class {n}" for n in range(len(names) + 1, 1000) if f"class {n}" not in names)

        def add(store: AnnotationStore) -> None:
            self.controller.class_index = store.add_class(name)

        self._edit(add)

    def _remove_class(self) -> None:
        index = self.controller.class_index
        if index < len(self.controller.store.classes):
            self._edit(lambda store: store.remove_class(index))

    def _fill_merge_menu(self) -> None:
        self.merge_menu.clear()
        index = self.controller.class_index
        for target, item in enumerate(self.controller.store.classes):
            if target != index:
                entry = QAction(item.name, self.merge_menu)
                entry.setToolTip(f"What is painted as the selected class becomes '{item.name}'")
                entry.triggered.connect(
                    lambda _=False, target=target: self._edit(lambda store: store.merge_classes(index, target))
                )
                self.merge_menu.addAction(entry)
