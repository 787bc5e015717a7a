"""Jobs on Dask workers: the same bytes as without, failures tried again and said in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import torch

distributed = pytest.importorskip("distributed")

from napari_isdnet.engine import cluster, cluster_worker  # noqa: E402
from napari_isdnet.engine.segment import SegmentResult, _Job, segment  # noqa: E402
from napari_isdnet.exceptions import InputError, MissingExtra  # noqa: E402
from napari_isdnet.io.array import ArraySource  # noqa: E402
from napari_isdnet.io.store import LabelStore  # noqa: E402
from napari_isdnet.window import Window  # noqa: E402
from tests.network_tools import lively, picture, small  # noqa: E402

pytestmark = pytest.mark.slow  # a cluster of processes takes its time

SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "float32", "window": 256}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as workers:
            yield workers.scheduler_address


@pytest.fixture(autouse=True, scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "field.tif", picture((420, 500)), photometric="rgb", tile=(256, 256))
    return tmp_path / "field.tif"


def run(image: Any, output: Path, **options: Any) -> SegmentResult:
    steps = segment(image, lively(small(channels=16)), output=output, **{**SETTINGS, **options})
    done = 0.0
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            result: SegmentResult = stop.value
            return result
        assert step.done >= done - 1e-9
        done = step.done


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and ".job" not in str(p.relative_to(folder))]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != "zarr.json"}


def test_a_second_run_of_a_job_leaves_the_model_of_the_first_to_its_workers(
    address: str, image: Path, tmp_path: Path
) -> None:
    options = {**SETTINGS, "output": tmp_path, "context": "window", "dask": address}
    steps = segment(image, lively(small(channels=16)), **options)
    while next(steps).stage != "write":
        pass
    model = tmp_path / "field.job" / cluster_worker.MODEL
    assert model.is_file()
    with pytest.raises(InputError, match="is being worked on by process"):
        run(image, **options)
    assert model.is_file()
    steps.close()
    assert not model.exists()


@pytest.mark.parametrize(("context", "orientations"), [("whole", 1), ("window", 1), ("whole", 2), ("window", 2)])
def test_same_map_as_without(address: str, image: Path, tmp_path: Path, context: str, orientations: int) -> None:
    options = {"context": context, "orientations": orientations, "probabilities": True, "uncertainty": True}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as a worker has: sums of convolutions depend on how many there are
        alone = run(image, tmp_path / "alone", **options)
    finally:
        torch.set_num_threads(threads)
    spread = run(image, tmp_path / "spread", dask=address, **options)
    first, second = contents(tmp_path / "alone"), contents(tmp_path / "spread")
    assert len(first) > 5
    assert first.keys() == second.keys()
    assert [name for name, data in first.items() if second[name] != data] == []
    assert alone.class_pixels == spread.class_pixels
    assert not (tmp_path / "spread" / "field.job" / cluster_worker.MODEL).exists()
    assert not (tmp_path / "spread" / "field.job" / "maps").exists()


def test_workers_let_go_of_maps_before_they_are_removed(
    address: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes none that are open."""
    drop, held = _Job._drop_maps, []

    def look(job: _Job) -> None:
        files = [file for worker in psutil.Process().children(recursive=True) for file in worker.open_files()]
        held.append([file.path for file in files if file.path.endswith(".map")])
        drop(job)

    monkeypatch.setattr(_Job, "_drop_maps", look)
    run(image, tmp_path, dask=address, context="whole")
    assert held == [[]]


def test_small_arrays_are_sent_and_regions_are_crops(address: str, tmp_path: Path) -> None:
    source = ArraySource([picture((420, 500))], "picture", "yxc")
    run(source, tmp_path / "all", dask=address)
    run(source, tmp_path / "part", dask=address, roi=Window(60, 70, 300, 400))
    whole = LabelStore.open(tmp_path / "all" / "picture.ome.zarr").read_labels(Window(60, 70, 300, 400))
    part = LabelStore.open(tmp_path / "part" / "picture.ome.zarr").read_labels(Window(0, 0, 300, 400))
    np.testing.assert_array_equal(part, whole)
    assert len(np.unique(part)) > 1


def test_a_cancelled_job_goes_on_with_what_is_done(
    address: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = segment(image, lively(small(channels=16)), output=tmp_path / "out", dask=address, **SETTINGS)
    for step in steps:
        if step.stage == "deep":
            break
    steps.close()
    asked: list[str] = []
    original = cluster.spread

    def spy(client: Any, recipe: Any, stage: str, units: Any, *rest: Any) -> Any:
        asked.extend([stage] * len(units))
        return original(client, recipe, stage, units, *rest)

    monkeypatch.setattr(cluster, "spread", spy)
    run(image, tmp_path / "out", dask=address)
    assert "shallow" not in asked
    assert "labels" in asked
    run(image, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_damaged_file_is_said_in_the_words_of_one_machine(address: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, picture((512, 512)), photometric="rgb", tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\0" * 400)
    with pytest.raises(InputError, match="cannot read rows"):
        run(path, tmp_path / "out", dask=address)
    result = run(path, tmp_path / "skipped", dask=address, skip_bad_tiles=True)
    assert result.bad_windows
    assert result.class_pixels["nodata"] > 0


def always_fails(*_: Any) -> None:
    raise OSError("the network drive is gone")


def fails_once(folder: str, unit: int) -> cluster_worker.Done:
    marker = Path(folder) / f"tried {unit}"
    if not marker.exists():
        marker.touch()
        raise OSError("for a moment")
    return cluster_worker.Done(unit)


class FakeRecipe:
    """Stands in for a recipe; only the task looks into it."""


def test_failures_are_tried_again_and_then_reported(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with distributed.Client(address, set_as_default=False) as client:
        monkeypatch.setattr(cluster_worker, "run_unit", lambda recipe, task, _: fails_once(recipe, task.unit))
        recipe: Any = str(tmp_path)
        assert sorted(done.unit for done in cluster.spread(client, recipe, "deep", range(7), ())) == list(range(7))
        monkeypatch.setattr(cluster_worker, "run_unit", always_fails)
        with pytest.raises(InputError, match=r"failed on the cluster 3 times \(OSError: the network drive is gone\)"):
            list(cluster.spread(client, recipe, "deep", range(3), ()))


def test_no_scheduler_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(InputError, match=r"No Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"),
        cluster.connect("tcp://127.0.0.1:1"),
    ):
        pass


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"napari-isdnet\[dask\]"), cluster.connect("local"):
        pass


def test_workers_that_would_compute_differently_are_refused(tmp_path: Path) -> None:
    from napari_isdnet.engine.segment import SegmentOptions

    class Client:
        isdnet_threads = None

        def wait_for_workers(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, *_: Any) -> dict[str, tuple[str, str, str]]:
            return {"a": ("cpu", "float32", ""), "b": ("cuda", "bfloat16", "")}

    with pytest.raises(InputError, match="bfloat16 on cuda, float32 on cpu"):
        cluster.agreed(Client(), SegmentOptions(tmp_path))


WORKING = """
import time
from distributed import as_completed
from napari_isdnet.engine import cluster

cluster.local_size = lambda: (2, 1)
try:
    print("starts", flush=True)
    with cluster.connect("local") as client:
        waiting = client.map(time.sleep, [60, 61])
        while not any(client.processing().values()):
            time.sleep(0.1)
        time.sleep(1)
        print("works", flush=True)
        for _ in as_completed(waiting, loop=client.loop):
            pass
except KeyboardInterrupt:
    print("said once", flush=True)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX sends Ctrl-C to all of a group")
@pytest.mark.parametrize(("moment", "more"), [("starts", 0.7), ("starts", 1.5), ("works", 0)])
def test_ctrl_c_is_answered_by_the_process_that_started_workers(moment: str, more: float) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", WORKING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert run.stdout is not None
        while run.stdout.readline() != f"{moment}\n":
            assert run.poll() is None
        time.sleep(more)
        os.killpg(run.pid, signal.SIGINT)
        said, errors = run.communicate(timeout=60)
        assert (said, errors) == ("said once\n", "")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
