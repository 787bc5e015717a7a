"""Segment jobs from end to end: killed, cancelled, refused, resumed; regions."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_isdnet.engine import job as job_module
from napari_isdnet.engine.differences import job_differences
from napari_isdnet.engine.ledger import JobDiffersError
from napari_isdnet.engine.segment import SegmentResult, segment
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, small, source_of
from tests.segment_tools import PLAIN, four_classes, labels, run

SHAPE = (392, 514)  # the last two columns give the deep input no pixel of their own


@pytest.fixture(scope="module")
def model() -> ISDNet:
    return four_classes()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return picture(SHAPE)


def digest(folder: Path) -> dict[str, str]:
    """Every file of a store but its markers, by content."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def unbroken(model: ISDNet, image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> SegmentResult:
    return run(source_of(image), model, tmp_path_factory.mktemp("unbroken"))


def test_result_says_what_was_done(unbroken: SegmentResult) -> None:
    assert unbroken.pixels == SHAPE[0] * SHAPE[1]
    assert sum(unbroken.class_pixels.values()) == unbroken.pixels
    assert set(unbroken.class_pixels) == {"class 0", "class 1", "class 2", "class 3", "nodata"}
    found = np.bincount(labels(unbroken).ravel(), minlength=256)
    assert [unbroken.class_pixels[f"class {k}"] for k in range(4)] == list(found[:4])
    assert unbroken.pixels_per_second == pytest.approx(unbroken.pixels / unbroken.seconds)
    assert unbroken.peak_rss_bytes > 2**26
    assert (unbroken.device, unbroken.precision, unbroken.context) == ("cpu", "float32", "whole")
    assert unbroken.bad_windows == unbroken.warnings == []
    assert set(unbroken.to_dict()) >= {"outputs", "pixels", "seconds", "peak_rss_bytes"}
    assert np.unique(labels(unbroken)).size > 1


# ------------------------------------------------------------------------------------------------- interruption

DRIVER = """
import os, sys
from pathlib import Path
import torch, timm, zarr, tifffile
torch.set_num_threads(1)
from napari_isdnet.engine import job, segment, streaming
from napari_isdnet import cli, paths
job.RAM_MAPS = 0  # spill every map
folder = Path(sys.argv[1])
paths.cache_folder = lambda: folder / "cache"
print("ready", flush=True)
for line in sys.stdin:  # one process for each output folder, without importing everything again
    child = os.fork()
    if child == 0:
        command = ["segment", folder / "scene.tif", "-o", line.strip(), "-m", folder / "m.safetensors", "--window", 128]
        command += ["--memory", 1, "--device", "cpu", "--precision", "float32"]
        code = cli.run(cli.app, [str(word) for word in command], "napari-isdnet")
        sys.stderr.flush()
        os._exit(code)
    print("pid", child, flush=True)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs of ``napari-isdnet segment`` in processes of their own, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "stderr.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._wait_for("ready")

    def _wait_for(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(self.errors.read_text())

    def start(self, output: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{output}\n")
        self.process.stdin.flush()
        return int(self._wait_for("pid"))

    def code(self) -> int:
        return int(self._wait_for("code"))


@pytest.fixture
def commands(model: ISDNet, image: np.ndarray, tmp_path: Path) -> Iterator[Commands]:
    tifffile.imwrite(tmp_path / "scene.tif", image, photometric="rgb", tile=(128, 128))
    save_model(model, tmp_path / "m.safetensors")
    started = Commands(tmp_path)
    yield started
    started.process.stdin.close()  # type: ignore[union-attr]
    started.process.wait(60)
    started.process.stdout.close()  # type: ignore[union-attr]


def lines_of(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(
    commands: Commands, unbroken: SegmentResult, tmp_path: Path
) -> None:
    assert (commands.start(tmp_path / "plain"), commands.code())[1] == 0, commands.errors.read_text()
    total = lines_of(tmp_path / "plain" / "scene.job" / "ledger.log")
    broken, draw = tmp_path / "broken", random.Random()
    log = broken / "scene.job" / "ledger.log"
    moments = sorted(draw.sample(range(1, total - 12), 4))  # units recorded at the moment of the kill
    for wanted in moments:
        child = commands.start(broken)
        deadline = time.monotonic() + 60
        while lines_of(log) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert commands.code() == -signal.SIGKILL, moments
    before = log.read_bytes()
    assert (commands.start(broken), commands.code())[1] == 0, commands.errors.read_text()
    after = log.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])  # a torn last line is cut off
    units = [tuple(json.loads(line[9:])[:2]) for line in after.splitlines()]
    assert len(units) == len(set(units)) == total, "a unit that was done was computed again"
    assert digest(broken / "scene.ome.zarr") == digest(tmp_path / "plain" / "scene.ome.zarr")
    # Another process may sum in another order (threads): of the one in this process nearly all pixels agree.
    stored = LabelStore.open(broken / "scene.ome.zarr")
    assert (stored.read_labels(Window.whole(SHAPE)) == labels(unbroken)).mean() > 0.995


def test_cancel_and_go_on(
    model: ISDNet, image: np.ndarray, unbroken: SegmentResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "RAM_MAPS", 0)
    steps = segment(source_of(image), model, output=tmp_path, **PLAIN)
    fractions = [next(steps).fraction for _ in range(12)]
    steps.close()
    assert fractions == sorted(fractions)
    ledger = tmp_path / "picture.job" / "ledger.log"
    assert ledger.read_bytes().count(b'"shallow8"') >= 11
    result = run(source_of(image), model, tmp_path)
    assert ledger.read_bytes().count(b'"shallow8"') == 4 * 5  # every core once, over both runs
    np.testing.assert_array_equal(labels(result), labels(unbroken))
    assert b'"labels"' not in ledger.read_bytes()  # the store's own marks say which shards are done
    assert not (tmp_path / "picture.job" / "maps").exists()


def test_maps_that_were_taken_away_are_computed_again(
    model: ISDNet, image: np.ndarray, unbroken: SegmentResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "RAM_MAPS", 0)
    steps = segment(source_of(image), model, output=tmp_path, **PLAIN)
    for _ in range(20):
        next(steps)
    steps.close()
    (tmp_path / "picture.job" / "maps" / "shallow8.map").unlink()
    np.testing.assert_array_equal(labels(run(source_of(image), model, tmp_path)), labels(unbroken))


def test_two_at_once_and_other_parameters_are_refused(model: ISDNet, image: np.ndarray, tmp_path: Path) -> None:
    steps = segment(source_of(image), model, output=tmp_path, **PLAIN)
    next(steps)
    with pytest.raises(InputError, match=f"being worked on by process {os.getpid()}"):
        run(source_of(image), model, tmp_path)
    steps.close()
    for change, words in (
        ({"window": 160}, r"begun with cores of 128 pixels \(now 160 pixels\): use --overwrite"),
        ({"context": "window"}, r"begun with the whole image as context \(now window by window\): use"),
        ({"contrast": (0, 100)}, "begun with another contrast"),
        (
            {"uncertainty": True, "roi": Window(0, 8, 32, 64)},
            "whole image as region .now rows 0 to 31 and columns 8 to 71.; no",
        ),
    ):
        with pytest.raises(InputError, match=words):
            run(source_of(image), model, tmp_path, **change)
    with pytest.raises(InputError, match="begun with other weights of the model"):
        run(source_of(image), lively(model.config, seed=5), tmp_path)


def test_another_model_or_image_is_told_by_its_name(model: ISDNet, tmp_path: Path) -> None:
    small_image = picture((128, 160))
    run(source_of(small_image), model, tmp_path)
    other = lively(model.config, seed=5)
    assert other.header is not None
    other.header = replace(other.header, name="dawn")
    with pytest.raises(JobDiffersError, match=r"begun with the model 'lively' \(now 'dawn'\): use") as caught:
        run(source_of(small_image), other, tmp_path)
    assert caught.value.about == {"model": "lively"}
    assert caught.value.stored["model"] not in str(caught.value)
    header = {"image": {"path": "/a.tif"}, "versions": {"x": "1"}, "scale": 1.0}
    changed = {"image": {"path": "/b.tif"}, "versions": {"x": "2"}, "scale": 0.5}
    assert job_differences(header, changed, {}) == [
        "another image (/a.tif, now /b.tif)", "the scale of 1.0 (now 0.5)", "another version (x 1, now x 2)",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_made_is_one_sentence(
    model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for inside in ("", "results"):
        with pytest.raises(InputError, match="file is a file, not a folder for results; choose another"):
            run(source_of(picture((128, 160))), model, tmp_path / "file" / inside)

    def refuse(*_: Any, **__: Any) -> None:  # as under /proc
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"nope for the results cannot be made \(No such file or directory\); choose"):
        run(source_of(picture((128, 160))), model, tmp_path / "nope")


def test_memory_is_no_part_of_a_job(model: ISDNet, tmp_path: Path) -> None:
    small_image = picture((200, 200))
    steps = segment(source_of(small_image), model, output=tmp_path, **{**PLAIN, "window": 64, "memory": 1})
    next(steps)
    steps.close()
    # Other memory, and no window: the job goes on with the cores that it was begun with.
    result = run(source_of(small_image), model, tmp_path, window=None, memory=2)
    assert '"core": 64' in (tmp_path / "picture.job" / "ledger.json").read_text()
    assert result.class_pixels["nodata"] == 0


def test_overwrite_and_what_lies_there(model: ISDNet, tmp_path: Path) -> None:
    one, two = picture((128, 160), 1), picture((128, 160), 2)
    (tmp_path / "picture.ome.zarr").mkdir()
    with pytest.raises(InputError, match="exists; use --overwrite"):
        run(source_of(one), model, tmp_path)
    first = labels(run(source_of(one), model, tmp_path, overwrite=True))
    again = run(source_of(one), model, tmp_path)  # finished: nothing to do, same answer
    np.testing.assert_array_equal(labels(again), first)
    with pytest.raises(InputError, match="begun with another image of this name, or this one before"):
        run(source_of(two), model, tmp_path)
    assert (labels(run(source_of(two), model, tmp_path, overwrite=True)) != first).any()


def test_full_disk_is_one_sentence_and_the_job_goes_on(
    model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = picture((128, 160))
    write = LabelStore.write_shard

    def full(self: LabelStore, *rest: Any, **named: Any) -> Any:
        from napari_isdnet.io.disk import disk_errors

        with disk_errors(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LabelStore, "write_shard", full)
    with pytest.raises(InputError, match="disk is full"):
        run(source_of(scene), model, tmp_path)
    assert not (tmp_path / "picture.ome.zarr").exists()
    monkeypatch.setattr(LabelStore, "write_shard", write)
    assert run(source_of(scene), model, tmp_path).class_pixels["nodata"] == 0


# ------------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("context", ["whole", pytest.param("window", marks=pytest.mark.long)])
def test_region_is_the_crop_of_the_whole(
    model: ISDNet, image: np.ndarray, unbroken: SegmentResult, tmp_path: Path, context: Any
) -> None:
    region = Window(151, 233, 150, 240)
    whole = unbroken if context == "whole" else run(source_of(image), model, tmp_path / "all", context=context)
    part = run(source_of(image), model, tmp_path / "part", context=context, roi=region)
    np.testing.assert_array_equal(labels(part), labels(whole)[region.slices])
    assert part.pixels == region.area
    with pytest.raises(InputError, match="must lie inside the image of 392 x 514"):
        run(source_of(image), model, tmp_path / "out", roi=Window(372, 0, 21, 5))


def test_region_is_the_crop_also_where_the_kept_means_are_pools_of_several_bins(
    image: np.ndarray, tmp_path: Path
) -> None:
    """The pools of a PSPNet head lie in memory otherwise than they are counted, and go through a file here."""
    model = lively(small(deep_head="pspnet", channels=16, classes=4, auxiliary=False, super_resolution=False))
    whole = run(source_of(image), model, tmp_path / "all")
    region = Window(151, 233, 150, 240)
    part = run(source_of(image), model, tmp_path / "part", roi=region)
    np.testing.assert_array_equal(labels(part), labels(whole)[region.slices])


# ------------------------------------------------------------------------------------------------- what images hold
