"""Which channels of an image are shown and segmented: what its file says, three of them, or one as grey."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.widgets._controls import Controls

COLORS = ("red", "green", "blue")


class ChannelChoice(Controls):
    """A row of the Load dock, shown while there is something to choose: only channels that are there are offered."""

    PREFIX = "load"
    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.kind = self._combo(
            "channels",
            "Which channels are shown and segmented. By the file: those that it says are red, green and blue, else the "
            "first three, or the first one. The same as --channels on the command line",
            ("By the file", "file"), ("Red, green, blue", "rgb"), ("One, as grey", "grey"),
        )  # fmt: skip
        self.numbers: list[QComboBox] = [
            self._combo(f"channel_{name}", f"The channel that is shown and segmented as {name}, counted from 0")
            for name in COLORS
        ]
        label = QLabel("Channels", self)
        label.setBuddy(self.kind)
        first, second = QHBoxLayout(), QHBoxLayout()
        first.addWidget(label)
        first.addWidget(self.kind, 1)
        self.names = [QLabel(name.capitalize(), self) for name in COLORS]
        for name, box in zip(self.names, self.numbers, strict=True):
            name.setBuddy(box)
            box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)  # a number needs no wide dock
            box.setMinimumWidth(50)
            second.addWidget(name)
            second.addWidget(box, 1)
            box.currentIndexChanged.connect(self._number_changed)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(first)
        column.addLayout(second)
        self.kind.currentIndexChanged.connect(self._kind_changed)
        self._show_numbers()
        self.hide()

    def chosen(self) -> tuple[int, ...] | None:
        """Channel numbers, one or three; None for what the file says."""
        if self.kind.currentData() == "file":
            return None
        used = self.numbers if self.kind.currentData() == "rgb" else self.numbers[:1]
        return tuple(int(box.currentData()) for box in used)

    def reset(self) -> None:
        """What the file says, of an image that is not known yet."""
        self._quietly(self.kind, 0)
        self._show_numbers()
        self.hide()

    def offer(self, source: ImageSource, policy: IntensityPolicy) -> None:
        """The channels of ``source``, of which those are chosen first that ``policy`` shows."""
        if self.numbers[0].count() != source.channels:
            for box in self.numbers:
                box.blockSignals(True)
                box.clear()
                for channel in range(source.channels):
                    box.addItem(str(channel), channel)
                box.blockSignals(False)
        if self.kind.currentData() == "file":
            for box, channel in zip(self.numbers, (policy.channels * 3)[:3], strict=True):
                self._quietly(box, channel)
        self.setVisible(source.channels > 1)

    def _kind_changed(self) -> None:
        self._show_numbers()
        self.changed.emit()

    def _number_changed(self) -> None:
        if self.kind.currentData() != "file":
            self.changed.emit()

    def _show_numbers(self) -> None:
        kind = self.kind.currentData()
        for place, (name, box) in enumerate(zip(self.names, self.numbers, strict=True)):
            name.setVisible(kind == "rgb")
            box.setVisible(kind == "rgb" or (kind == "grey" and place == 0))

    @staticmethod
    def _quietly(box: QComboBox, index: int) -> None:
        box.blockSignals(True)
        box.setCurrentIndex(index)
        box.blockSignals(False)
