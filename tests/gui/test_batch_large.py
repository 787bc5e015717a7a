"""The Batch dock with an image that no memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.widgets._engine import keep_triton_out
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.window import Window
from tests.gui.large_world import LargeWorld, large, run_limited
from tests.network_tools import lively, small


def write_large_zarr(path: Path) -> None:
    """An OME-Zarr of 100,000 x 100,000 pixels of which only the coarsest level takes room on the disk."""
    import zarr

    from napari_isdnet.io.samples import open_sample

    world = open_sample("aerial-100k")
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    for level, shape in enumerate(world.levels):
        group.create_array(str(level), shape=(*shape, 3), chunks=(512, 512, 3), dtype="uint8", fill_value=90)
    last = len(world.levels) - 1
    group[str(last)][...] = world.read(Window.whole(world.levels[last]), last)  # type: ignore[index]
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}, {"name": "c", "type": "channel"}]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [2.0**k, 2.0**k, 1.0]}]}
        for k in range(len(world.levels))
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "large", "axes": axes, "datasets": datasets}]}


def a_large_image_in_the_queue(world: LargeWorld, folder: str, model: str) -> None:
    """Its thumbnail comes from its coarsest level; cancelled after some windows it has read those only, and goes on."""
    from napari_isdnet.io.zarr import ZarrSource

    fine: list[Window] = []
    coarse: list[int] = []
    original = ZarrSource._load

    def load(self: Any, level: int, part: int, index: int, window: Window) -> Any:
        if level == 0:
            fine.append(window)
        else:
            coarse.append(level)
        return original(self, level, part, index, window)

    ZarrSource._load = load  # type: ignore[method-assign]
    image, output = Path(folder) / "large.ome.zarr", Path(folder) / "out"
    write_large_zarr(image)
    batch = world.dock(BatchWidget(world.viewer))
    batch.add([str(image)])
    world.wait(lambda: batch.table.rowCount() == 1 and not batch.table.item(0, 0).icon().isNull())
    assert not fine, "the thumbnail read full-resolution pixels"
    assert set(coarse) == {9}, set(coarse)
    batch.choose_model(model)
    batch.context.setCurrentIndex(batch.context.findData("window"))
    batch.output.setText(str(output))
    batch.run_button.click()
    world.wait(lambda: batch.queue.items[0].done > 0)
    batch.bar.cancel_button.click()
    world.wait(lambda: not batch.bar.running)
    assert [item.state for item in batch.queue.items] == ["queued"], batch.queue.items
    assert 0 < batch.queue.items[0].done < 0.05
    assert fine
    assert max(w.bottom for w in fine) < 8192, "windows are segmented from the top"
    assert sum(w.area for w in fine) < 1e8, "one hundredth of the image"
    assert batch.queue.items[0].done * 1e10 < sum(w.area for w in fine) + 512**2, "more is done than was read"
    again = world.dock(BatchWidget(world.viewer))
    again.output.setText(str(output))
    again.output.editingFinished.emit()
    assert [(item.stem, item.state) for item in again.queue.items] == [("large", "queued")]


@large
def test_an_image_of_100k_in_the_queue_within_3_gib_is_read_window_by_window(tmp_path: Path) -> None:
    keep_triton_out()
    model = save_model(lively(small(channels=16)), tmp_path / "lively.safetensors")
    run_limited(a_large_image_in_the_queue, str(tmp_path), str(model))
