"""The profile of a whole-image job: seconds that add up, of the real parts, which are themselves again afterwards."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tifffile
from napari_isdnet_training.benchmark import stages
from napari_isdnet_training.benchmark.stages import AHEAD, NETWORK, NOTES, REST, STAGE_COLUMNS, WRITING, Stopwatch
from napari_isdnet_training.cli import app
from typer.testing import CliRunner

from napari_isdnet.engine.maps import LazyMap
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.tiff import TiffSource
from napari_isdnet.model.checkpoint import save_model
from tests.network_tools import lively, picture, small

pytestmark = pytest.mark.long  # each trains, or runs a network several times


def test_what_runs_inside_stops_what_runs_around(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 3.5, 10.0, 11.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    with watch.running("maps"):  # from 0
        with watch.running("copy"):  # from 1 to 3
            pass
        assert watch.seconds[NETWORK, "copy"] == 2
    assert watch.seconds[NETWORK, "maps"] == 1.5  # 0 to 1 and 3 to 3.5
    with pytest.raises(InputError), watch.running("maps"):  # from 10 to 11
        raise InputError("bad tile")
    assert watch.seconds[NETWORK, "maps"] == 2.5
    assert dict(watch.calls) == {(NETWORK, "copy"): 1, (NETWORK, "maps"): 2}


def test_threads_are_told_apart_and_computations_waited_for() -> None:
    waited: list[str] = []
    watch = Stopwatch(lambda: waited.append(threading.current_thread().name))
    work = {stage: watch.around(stage, lambda stage=stage: stage) for stage in ("compute", "write", "decode")}
    assert work["compute"]() == "compute"
    for name in ("isdnet-write", "isdnet-ahead"):
        with ThreadPoolExecutor(1, thread_name_prefix=name) as pool:
            assert pool.submit(work["write"]).result() == "write"
    assert waited == [threading.current_thread().name]
    assert set(watch.calls) == {(NETWORK, "compute"), (WRITING, "write"), (AHEAD, "write")}


def test_a_job_is_profiled_by_thread_and_stage(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", picture((300, 2100)), tile=(128, 128), photometric="rgb")
    save_model(lively(small()), tmp_path / "m.safetensors")
    before = LazyMap.put, TiffSource.read
    arguments = ["image.tif", "--model", "m.safetensors", "--window", "128", "--device", "cpu"]
    arguments[0], arguments[2] = str(tmp_path / "image.tif"), str(tmp_path / "m.safetensors")
    more = ["--precision", "float32", "--output", str(tmp_path / "a.csv"), "--json"]
    began = time.perf_counter()
    result = CliRunner().invoke(app, ["benchmark", "stages", *arguments, *more])
    around = time.perf_counter() - began
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output.strip().splitlines()[-1])["rows"]
    assert (LazyMap.put, TiffSource.read) == before
    assert all(tuple(row) == STAGE_COLUMNS for row in rows)
    found = {(row["thread"], row["stage"]): row for row in rows}
    assert {stage for _, stage in found} == set(NOTES)
    assert found[AHEAD, "decode"]["calls"] == 3 * 17  # every core of the shallow pass, once
    assert found[WRITING, "write"]["calls"] == 2  # shards of 2048
    assert found[AHEAD, "levels"]["calls"] >= 2
    network = [row for (thread, _), row in found.items() if thread == NETWORK]
    assert sum(row["share"] for row in network) == pytest.approx(1, abs=0.01)
    assert found[NETWORK, "compute"]["seconds"] > found[NETWORK, "copy"]["seconds"]
    # The parts fit into the time of the job: none is counted twice, and some of it is theirs.
    wall = sum(row["seconds"] for row in network)
    assert 0 <= found[NETWORK, REST]["seconds"] < wall < around
    assert (tmp_path / "a.csv").read_text().splitlines()[2] == ",".join(STAGE_COLUMNS)
