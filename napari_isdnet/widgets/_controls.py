"""Controls that the docks share: named and explained widgets, and the list of the viewer's images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.widgets import _segment_layers as layers

W = TypeVar("W", bound=QWidget)

ORIENTATIONS = (
    ("1 orientation, as it lies", 1),
    ("2 orientations, twice the time", 2),
    ("4 orientations, 4 times the time", 4),
    ("8 orientations, 8 times the time", 8),
)
ORIENTATIONS_TIP = (
    "Average the answer over turns and mirrors of the image (test-time augmentation): steadier and often better, at as"
    " many times the work"
)

OUTLINES = (
    ("Along every pixel", 0.0),
    ("Within 1 pixel", 1.0),
    ("Within 2 pixels", 2.0),
    ("Within 4 pixels", 4.0),
)
GEOPACKAGE_TIP = "Write class polygons as a GeoPackage too (QGIS, ArcGIS), in map coordinates where the image has them"
OUTLINES_TIP = (
    "Outlines of the polygons: through every pixel's corner, or simplified about so far, neighbours together; 2 pixels"
    " take the stairs away and two thirds of the file"
)
AREAS_TIP = (
    "In the polygons, areas of fewer pixels become a part of the neighbour that they share most border with (the"
    " minimum mapping unit)"
)


LOWEST = 150
"""Height that a dock keeps where others are stacked on it."""


class Box(QComboBox):
    """A box in a narrow dock: what is chosen ends in an ellipsis where it does not fit, and is told with the tooltip.

    It is not as wide as its longest entry.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def shown_text(self) -> str:
        """The text that fits."""
        return self._elided(self.currentText(), self._option())

    def full_tip(self) -> str:
        """All of what is chosen, or what its entry says of itself, before what the box is for."""
        chosen = self.itemData(self.currentIndex(), Qt.ItemDataRole.ToolTipRole) or self.currentText()
        return "\n".join(text for text in (str(chosen), self.toolTip()) if text and text != "None")

    def event(self, event: Any) -> bool:
        """Asked for the tooltip, tell what is chosen too."""
        if event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.full_tip(), self)
            return True
        return bool(super().event(event))

    def paintEvent(self, event: Any) -> None:
        """As any box, but for the ellipsis."""
        if self.isEditable():
            super().paintEvent(event)
            return
        painter, option = QStylePainter(self), self._option()
        if self.currentIndex() < 0:
            palette = option.palette
            palette.setBrush(QPalette.ColorRole.ButtonText, palette.placeholderText())
            option.palette = palette
            option.currentText = self.placeholderText()
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        option.currentText = self._elided(option.currentText or "", option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def _option(self) -> QStyleOptionComboBox:
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        return option

    def _elided(self, text: str, option: QStyleOptionComboBox) -> str:
        style = self.style()
        assert style is not None
        part = QStyle.SubControl.SC_ComboBoxEditField
        field = style.subControlRect(QStyle.ComplexControl.CC_ComboBox, option, part, self)
        return self.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, field.width() - 4)


class Controls(QWidget):
    """Makes widgets named ``PREFIX_name``, each with a tooltip."""

    PREFIX: ClassVar[str]

    def _dress(self, widget: W, name: str, tip: str) -> W:
        widget.setObjectName(f"{self.PREFIX}_{name}")
        widget.setToolTip(tip)
        return widget

    def _button(self, name: str, text: str, tip: str) -> QPushButton:
        return self._dress(QPushButton(text, self), name, tip)

    def _check(self, name: str, text: str, tip: str) -> QCheckBox:
        return self._dress(QCheckBox(text, self), name, tip)

    def _spin(self, name: str, tip: str, low: int, high: int, value: int, suffix: str = "") -> QSpinBox:
        box = self._dress(QSpinBox(self), name, tip)
        box.setRange(low, high)
        box.setValue(value)
        box.setSuffix(suffix)
        return box

    def _area_box(self, tip: str = AREAS_TIP) -> QSpinBox:
        box = self._spin("min_area", tip, 1, 10_000_000, 1, " pixels")
        box.setPrefix("from ")
        box.setSpecialValueText("of every size")
        box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)  # as wide as the boxes around it
        return box

    def _combo(self, name: str, tip: str, *items: tuple[str, Any]) -> QComboBox:
        box = self._dress(Box(self), name, tip)
        for text, key in items:
            box.addItem(text, key)
        return box


class Question(QWidget):
    """A question in the dock itself, with what to answer; hidden while there is none."""

    def __init__(self, parent: QWidget, prefix: str) -> None:
        super().__init__(parent)
        self.setObjectName(f"{prefix}_question")
        self.setToolTip("Answer with one of the buttons")
        self.label = QLabel(self)
        self.label.setWordWrap(True)
        self.yes, self.no = QPushButton(self), QPushButton("No", self)
        self.no.setToolTip("Do nothing")
        self._then: Callable[[], None] = lambda: None
        self.yes.clicked.connect(self._answer)
        self.no.clicked.connect(self.hide)
        buttons = QHBoxLayout()
        buttons.addWidget(self.yes)
        buttons.addWidget(self.no)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.label)
        column.addLayout(buttons)
        self.hide()

    def ask(self, text: str, yes: str, tip: str, then: Callable[[], None]) -> None:
        """Show ``text``; ``then`` is called when the button ``yes`` is pressed."""
        self.label.setText(text)
        self.yes.setText(yes)
        self.yes.setToolTip(tip)
        self._then = then
        self.show()

    def _answer(self) -> None:
        self.hide()
        self._then()


def list_images(box: QComboBox, viewer: Any) -> bool:
    """Fill ``box`` with the viewer's images but our results, keeping what is chosen; True when that is another now."""
    return fill_with(box, images_of(viewer))


def images_of(viewer: Any) -> list[Any]:
    """The viewer's image layers but our results."""
    from napari.layers import Image

    return [x for x in viewer.layers if isinstance(x, Image) and not x.metadata.get(layers.RESULT)]


def fill_with(box: QComboBox, items: Sequence[Any]) -> bool:
    """Fill ``box`` with layers, keeping what is chosen or else taking the last; True when that is another now."""
    chosen = box.currentData()
    box.blockSignals(True)
    box.clear()
    for layer in items:
        box.addItem(layer.name, layer)
    box.setCurrentIndex(items.index(chosen) if chosen in items else len(items) - 1)
    box.blockSignals(False)
    follow_names(box, items)
    return box.currentData() is not chosen


def follow_names(box: QComboBox, items: Sequence[Any]) -> None:
    """Let the entries of ``box`` that hold one of these layers, and no others, be renamed with it from now on."""
    names = box.findChild(_Names) or _Names(box)
    names.follow(items)


class _Names(QObject):
    """The connections of one box to the names of its layers: they end when a layer leaves the box, or with the box."""

    def __init__(self, box: QComboBox) -> None:
        super().__init__(box)
        followed: list[Any] = []
        self._followed = followed
        self._box = box
        renamed = self._renamed
        # napari calls back into Qt objects that are gone already: nothing may stay connected.
        box.destroyed.connect(lambda *_: _part(followed, renamed))

    def follow(self, items: Sequence[Any]) -> None:
        _part(self._followed, self._renamed)
        self._followed.extend(items)
        for layer in items:
            layer.events.name.connect(self._renamed)

    def _renamed(self, event: Any) -> None:
        layer = event.source
        for index in range(self._box.count()):
            if self._box.itemData(index) is layer:
                self._box.setItemText(index, layer.name)


def _part(followed: list[Any], renamed: Callable[[Any], None]) -> None:
    for layer in followed:
        layer.events.name.disconnect(renamed)
    followed.clear()


class PageArea(QScrollArea):
    """Scrolls up and down only: never narrower than its page, whatever the page shows."""

    def minimumSizeHint(self) -> QSize:
        """As wide as the page needs, scroll bar included, and high enough to see what it is under other docks."""
        hint, page, bar = super().minimumSizeHint(), self.widget(), self.verticalScrollBar()
        if page is None or bar is None:
            return hint
        height = max(hint.height(), min(LOWEST, page.minimumSizeHint().height()))
        return QSize(page.minimumSizeHint().width() + bar.sizeHint().width(), height)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """The page has changed: so may its width."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return super().eventFilter(watched, event)


def in_row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side; the first one takes the room that is left."""
    line = QHBoxLayout()
    line.setContentsMargins(0, 0, 0, 0)
    line.setSpacing(6)
    for index, widget in enumerate(widgets):
        line.addWidget(widget, 1 if index == 0 else 0)
    return line


def form_layout() -> QFormLayout:
    """Labels at the left, what they name beside them as wide as the dock."""
    form = QFormLayout()
    form.setContentsMargins(0, 0, 0, 0)
    form.setSpacing(6)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft)
    return form


def separator(parent: QWidget) -> QFrame:
    """A line across the dock."""
    line = QFrame(parent)
    line.setFrameShape(QFrame.Shape.HLine)
    return line


def scrolled(dock: QWidget, page: QWidget, name: str) -> None:
    """Lay out ``page`` as all that ``dock`` holds, in a :class:`PageArea`."""
    area = PageArea(dock)
    area.setObjectName(name)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(page)
    outer = QVBoxLayout(dock)
    outer.setContentsMargins(0, 0, 0, 0)
    outer.addWidget(area)
