"""What the docks share: boxes that list layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtWidgets import QComboBox

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.widgets._controls import fill_with
from napari_isdnet.widgets._segment_layers import opened
from napari_isdnet.window import Window


def layer(name: str) -> Any:
    from napari.layers import Image

    return Image(np.zeros((4, 4)), name=name)


def test_the_alpha_of_an_rgba_layer_means_no_image_as_in_a_file() -> None:
    from napari.layers import Image

    pixels = np.full((40, 60, 4), 200, np.uint8)
    pixels[:, 30:, 3] = 0
    source, _, _ = opened(Image(pixels, name="rgba"))
    assert source.alpha == 3
    _, valid = IntensityPolicy.from_source(source).apply(source.read(Window(0, 0, 40, 60)))
    assert valid is not None
    assert valid[:, :30].all()
    assert not valid[:, 30:].any()


def texts(box: QComboBox) -> list[str]:
    return [box.itemText(i) for i in range(box.count())]


def test_a_renamed_layer_is_listed_by_its_new_name_at_once(qtbot: Any) -> None:
    box = QComboBox()
    qtbot.addWidget(box)
    one, two = layer("one"), layer("two")
    fill_with(box, [one, two])
    changes: list[int] = []
    box.currentIndexChanged.connect(changes.append)
    one.name, two.name = "first", "second"
    assert texts(box) == ["first", "second"]
    assert not changes


def test_a_box_lets_go_of_the_names_of_layers_it_does_not_list(qtbot: Any) -> None:
    box = QComboBox()
    qtbot.addWidget(box)
    one, two = layer("one"), layer("two")
    before = len(one.events.name.callbacks)
    for _ in range(3):
        fill_with(box, [one, two])
    assert len(one.events.name.callbacks) == before + 1
    fill_with(box, [two])
    assert len(one.events.name.callbacks) == before
    box.deleteLater()
    qtbot.waitUntil(lambda: len(two.events.name.callbacks) == before, timeout=2000)
    two.name = "renamed after the box is gone"
