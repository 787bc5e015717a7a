"""The whole-image benchmark: what it times is the real job, and the ratios are of one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari_isdnet_training.benchmark import whole
from napari_isdnet_training.benchmark.whole import ALONE, END_TO_END, ONE_FORWARD, WHOLE_COLUMNS, measure_whole

from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.progress import result_of
from tests.network_tools import lively, picture, small

pytestmark = pytest.mark.long  # each trains, or runs a network several times


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, str]:
    tifffile.imwrite(tmp_path / "image.tif", picture((300, 420)), tile=(128, 128), photometric="rgb")
    model = lively(small())
    assert model.header is not None
    save_model(model, tmp_path / "m.safetensors", model.header)
    return tmp_path / "image.tif", str(tmp_path / "m.safetensors")


def run(steps):
    shown = []
    rows = result_of(steps, shown.append)
    return [step.stage for step in shown], rows


def test_every_variant_is_timed_in_turn_and_compared_within_its_round(files, monkeypatch) -> None:
    clock = iter(np.cumsum([0, 2, 0, 4, 0, 1, 0, 2, 0, 2, 0, 1]).tolist())
    monkeypatch.setattr(whole.time, "perf_counter", lambda: next(clock))
    names, rows = run(measure_whole(files[0], files[1], window=128, rounds=2, precision="float32"))
    assert names == [ALONE, END_TO_END, ONE_FORWARD] * 2
    assert all(tuple(row) == WHOLE_COLUMNS for row in rows)
    found = {row["variant"]: row for row in rows}
    assert found[ALONE]["ratio"] == 1
    assert found[END_TO_END]["ratio"] == 0.75  # 2 / 4 and 2 / 2
    assert found[ONE_FORWARD]["ratio"] == 2
    assert found[END_TO_END]["seconds"] == 3
    assert found[END_TO_END]["megapixels_per_second"] == 0.042
    assert (found[ALONE]["core"], found[ONE_FORWARD]["core"]) == (128, "")
    assert (found[ALONE]["height"], found[ALONE]["width"]) == (300, 420)


def test_one_forward_is_left_out_where_it_does_not_fit(files, monkeypatch) -> None:
    monkeypatch.setattr(whole, "bytes_per_pixel", lambda config: 1 << 40)
    names, rows = run(measure_whole(files[0], files[1], window=128, precision="float32"))
    assert names == [ALONE, END_TO_END]
    assert len(rows) == 2
