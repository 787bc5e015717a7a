"""Text for a shell, on the clipboard."""

from __future__ import annotations

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QPushButton

from napari_isdnet.widgets._job import timer

SHOWN_MS = 1500


def copy_text(button: QPushButton, text: str) -> None:
    """Put ``text`` on the clipboard; the button that was pressed says so for a moment."""
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    clipboard.setText(text)
    copied = button.findChild(QTimer, "copied")
    if copied is None:
        said = button.text()
        copied = timer(button, SHOWN_MS, lambda: button.setText(said), once=True)
        copied.setObjectName("copied")
    button.setText("Copied")
    copied.start()
