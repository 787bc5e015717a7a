"""The demo's window: image, live map and errors appear by themselves, with every dock at hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io import samples
from napari_isdnet.landcover import LANDCOVER_CLASSES
from napari_isdnet.model.checkpoint import save_model
from tests.network_tools import lively, small

pytest.importorskip("pyqtgraph")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = samples.Sample("desert-4k", "small", partial(samples._aerial, "desert-4k", 600, 60), True)
    monkeypatch.setattr(samples, "_SAMPLES", (own,))
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    network = lively(small())
    network.header = replace(network.header, classes=LANDCOVER_CLASSES, name="tiny")
    return save_model(network, tmp_path / "tiny.safetensors")


@pytest.mark.long
def test_the_demo_goes_from_the_image_to_its_errors(viewer: Any, model: Path, qtbot: Any) -> None:
    from napari_isdnet.widgets._demo import DOCKS, open_demo

    guide = open_demo(viewer, str(model))
    assert list(guide.docks) == list(DOCKS)
    qtbot.waitUntil(lambda: guide.state == "over", timeout=90_000)
    assert "Done" in guide.step.text()
    names = [layer.name for layer in viewer.layers]
    assert names[:2] == ["desert-4k", "truth"]
    assert any(name.startswith("desert-4k live") for name in names)
    assert "errors: any class" in names
    errors = guide.docks["Errors"]
    qtbot.waitUntil(lambda: not errors.visibleRegion().isEmpty())  # its tab is in front
    assert errors.result.region.shape == (600, 600)
    assert [c.name for c in errors.result.classes] == [c.name for c in LANDCOVER_CLASSES]
    assert not viewer.layers["truth"].visible
    guide.docks["Segment"].live_button.click()


@pytest.mark.long
def test_a_dock_that_is_missing_is_named_and_the_rest_works(
    viewer: Any, model: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_isdnet.widgets import _demo

    monkeypatch.setattr(_demo, "DOCKS", ("Nowhere", "Errors"))
    guide = _demo.open_demo(viewer, str(model))
    assert list(guide.docks) == ["Errors"]
    texts = [label.text() for label in guide.findChildren(_demo.QLabel)]
    assert any("Nowhere dock cannot be opened" in text for text in texts)
    assert "Without the Segment dock" in guide.step.text()


def test_what_the_manifest_names_opens(viewer: Any) -> None:
    the_command_of_the_manifest_opens_it()
    every_dock_of_the_manifest_opens_the_way_napari_opens_it(viewer)


@pytest.mark.long
def test_a_wrong_model_is_said_before_anything_is_added(viewer: Any, model: Path) -> None:
    from napari_isdnet.widgets._demo import open_demo

    with pytest.raises(InputError, match="There is no model 'nosuch'"):
        open_demo(viewer, "nosuch")
    assert len(viewer.layers) == 0


def the_command_of_the_manifest_opens_it() -> None:
    from npe2 import PluginManager

    from napari_isdnet.demo import COMMAND
    from napari_isdnet.widgets._demo import open_demo

    manager = PluginManager.instance()
    manager.discover()
    assert manager.commands.get(COMMAND) is open_demo


def every_dock_of_the_manifest_opens_the_way_napari_opens_it(viewer: Any) -> None:
    from npe2 import PluginManager

    PluginManager.instance().discover()
    manifest = PluginManager.instance().get_manifest("napari-isdnet")
    names = [widget.display_name for widget in manifest.contributions.widgets]
    assert {"Load", "Segment", "Errors", "Annotate", "Inspect"} <= set(names)
    for name in names:
        _, widget = viewer.window.add_plugin_dock_widget("napari-isdnet", name)
        # napari hands out a proxy, through which a layer is another object at every look
        held = getattr(widget, "viewer", None) or widget._viewer
        assert held is viewer, name
