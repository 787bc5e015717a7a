"""Label maps that another program writes while they are read: said, instead of figures or paint of two states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_isdnet.annotation.exchange import import_labels
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import classes_from
from napari_isdnet.engine.evaluate import evaluate_files
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.sink import export
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import result_of

SHAPE = (40, 20_000)


def write(folder: Path, value: int) -> Path:
    """The result of a job, in place of the one before."""
    store = LabelStore.create(folder / "job.zarr", SHAPE, classes_from(["a", "b"]), overwrite=True)
    for index, window in enumerate(store.shards):
        store.write_shard(index, np.full(window.shape, value, np.uint8))
    result_of(store.finish_pyramid())
    return result_of(export(store, folder / "map.ome.zarr", "ome-zarr", overwrite=True))


@pytest.mark.parametrize("role", ["prediction", "truth"])
def test_a_result_that_is_replaced_meanwhile_gives_no_figures(tmp_path: Path, role: str) -> None:
    result, other = write(tmp_path, 0), tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros(SHAPE, np.uint8))
    pair = (result, other) if role == "prediction" else (other, result)
    assert result_of(evaluate_files(*pair)).confusion.accuracy == 1
    steps = evaluate_files(*pair, output=tmp_path / "report")
    next(steps)
    write(tmp_path, 1)
    with pytest.raises(InputError, match=r"map\.ome\.zarr was changed by another program while it was read"):
        result_of(steps)
    assert not (tmp_path / "report" / "report.html").exists()


def test_a_result_that_is_replaced_meanwhile_is_not_silently_imported(tmp_path: Path) -> None:
    result = write(tmp_path, 0)
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, classes_from(["a", "b"])) as store:
        steps = import_labels(store, result, "mask")
        while next(steps).stage != "paint":
            pass
        write(tmp_path, 1)
        with pytest.raises(InputError, match=r"map\.ome\.zarr was changed by another program"):
            result_of(steps)
