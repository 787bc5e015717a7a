"""``isdnet-train benchmark read``: the same tiles for both sides, and bad input in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari_isdnet_training.benchmark.read import READ_COLUMNS, WARM, BareTiles, measure_reads
from napari_isdnet_training.cli import main

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.cache import shared_cache
from tests.benchmark_tools import drain


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 640, 3), dtype=np.uint8)
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="jpeg")
    return path


def test_every_tile_that_a_window_touches_is_decoded_once_by_each_side(image, monkeypatch) -> None:
    seen: list[int] = []
    decode = BareTiles.decode
    monkeypatch.setattr(BareTiles, "decode", lambda bare, tiles: (seen.extend(tiles), decode(bare, tiles)))
    before = shared_cache().misses + shared_cache().hits
    rows = drain(measure_reads(image, window=100, windows=3, threads=(1, 2), rounds=2))
    assert [tuple(row) for row in rows] == [READ_COLUMNS] * 2
    assert shared_cache().misses + shared_cache().hits - before == len(seen)
    assert 0 < sum(row["tiles"] for row in rows) < len(seen)  # warm rounds are not counted
    assert WARM > 0
    assert all(row["read_mb_per_second"] > 0 and row["ratio"] > 0 for row in rows)


def test_on_the_command_line(image, tmp_path, capsys) -> None:
    output = tmp_path / "reads.csv"
    common = ["--window", "64", "--windows", "2", "--rounds", "1", "--threads", "1", "--json"]
    with pytest.raises(SystemExit, match="0"):
        main(["benchmark", "read", str(image), *common, "--output", str(output)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["threads"] == 1
    assert ",".join(READ_COLUMNS) in output.read_text()


def test_what_cannot_be_measured_is_said(image, tmp_path) -> None:
    with pytest.raises(InputError, match="give a --window that fits"):
        drain(measure_reads(image, window=600))
    tifffile.imwrite(tmp_path / "strips.tif", np.zeros((300, 300), np.uint8))
    with pytest.raises(InputError, match="not stored in tiles"):
        drain(measure_reads(tmp_path / "strips.tif", window=100))
    planes = np.zeros((3, 320, 320), np.uint8)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate", tile=(64, 64))
    with pytest.raises(InputError, match="of all channels"):
        drain(measure_reads(tmp_path / "planes.tif", window=100))
    np.save(tmp_path / "array.npy", np.zeros((300, 300), np.uint8))
    with pytest.raises(InputError, match="is no TIFF"):
        drain(measure_reads(tmp_path / "array.npy", window=100))
