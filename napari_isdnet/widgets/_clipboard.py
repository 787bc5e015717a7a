"""Text for a shell, on the clipboard."""

from __future__ import annotations

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QPushButton

SHOWN_MS = 1500


def copy_text(button: QPushButton, text: str) -> None:
    """Put ``text`` on the clipboard; the button that was pressed says so for a moment."""
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    clipboard.setText(text)
    timer = button.findChild(QTimer, "copied")
    if timer is None:
        said = button.text()
        timer = QTimer(button)  # ends with the button
        timer.setObjectName("copied")
        timer.setSingleShot(True)
        timer.setInterval(SHOWN_MS)
        timer.timeout.connect(lambda: button.setText(said))
    button.setText("Copied")
    timer.start()
