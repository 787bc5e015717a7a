from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from napari_isdnet_training.benchmark import process
from napari_isdnet_training.benchmark.ablation import VARIANTS, summary
from napari_isdnet_training.benchmark.entries import ENTRIES, choose_entries
from napari_isdnet_training.benchmark.inference import best_class, labelling, multiply_adds, place, tiles
from napari_isdnet_training.benchmark.output import RunLog, plot_speed, read_csv, write_csv
from napari_isdnet_training.benchmark.path import ConvolvedPyramid, compiled, measure_path
from napari_isdnet_training.benchmark.process import Job, run_worker
from napari_isdnet_training.benchmark.speed import SpeedOptions, parse_size
from napari_isdnet_training.benchmark.strokes import RADIUS, draw
from napari_isdnet_training.registry import Network, build

from napari_isdnet.engine.device import choose
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.laplacian import LaplacianPyramid


@pytest.mark.parametrize("size", [(64, 96), (600, 96), (61, 90)])
def test_the_best_class_is_that_of_the_full_logits(size: tuple[int, int]) -> None:
    coarse = torch.randn(1, 5, -(-size[0] // 8), -(-size[1] // 8), generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
    labels = best_class(coarse, size)
    top = fine.topk(2, dim=0).values
    clear = (top[0] - top[1]) > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], fine.argmax(0).to(torch.uint8)[clear])


@pytest.mark.parametrize(("shape", "tile", "overlap"), [((100, 70), 64, 0), ((100, 70), 64, 16), ((40, 300), 64, 8)])
def test_tiles_cover_every_pixel(shape: tuple[int, int], tile: int, overlap: int) -> None:
    seen = np.zeros(shape, int)
    for row, column in tiles(shape, tile, overlap):
        assert row >= 0
        assert column >= 0
        seen[row : row + tile, column : column + tile] += 1
    assert seen.min() >= 1


class Threshold(torch.nn.Module):
    """Class 1 where the first channel is positive: what any mode must find on a smooth image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x[:, :1], self.weight)


@pytest.mark.parametrize("mode", ["whole", "half", "quarter", "local", "global"])
def test_every_mode_labels_the_whole_image(mode: str) -> None:
    placement = choose("cpu", "float32")
    network = place(Network("t", Threshold(), None, 8), placement, True)
    x = torch.linspace(-1, 1, 200).expand(1, 3, 150, 200).contiguous()
    labels = labelling(network, placement, mode, True, 64, 16)(x)
    assert labels.shape == (150, 200)
    assert labels.dtype == torch.uint8
    assert (labels == (x[0, 0] > 0)).float().mean() > 0.97


def test_multiply_adds_are_those_of_the_convolution() -> None:
    network = Network("c", torch.nn.Conv2d(3, 8, 3, padding=1), None)
    assert multiply_adds(network, (32, 48), "whole", 1024, 0) == 32 * 48 * 3 * 8 * 9
    network = Network("c", torch.nn.Conv2d(3, 8, 3, padding=1), None)
    assert multiply_adds(network, (64, 64), "local", 32, 0) == 64 * 64 * 3 * 8 * 9


def test_sizes_names_and_options_are_checked() -> None:
    assert parse_size("1024x2048") == (1024, 2048)
    for bad in ("1024", "ax5", "x", "-3x4"):
        with pytest.raises(InputError, match="HEIGHTxWIDTH"):
            parse_size(bad)
    with pytest.raises(InputError, match="known are isdnet-reference-r18"):
        choose_entries(["glnet"])
    with pytest.raises(InputError, match="overlaps by less"):
        SpeedOptions(tile=128, overlap=128)
    assert {"isdnet-lite", "unet", "pspnet-r50", "bisenetv2", "ddrnet-23-slim", "pointrend-r50"} <= set(ENTRIES)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", "import json, sys, time\ndef say(**k): print(json.dumps(k), flush=True)\n" + text]


READY = "say(state='ready', parameters=5, macs=2.0, device='d')\n"


def test_a_worker_that_ends_well_is_read() -> None:
    lines = "say(warm=False, seconds=9)\nsay(warm=True, seconds=0.5)\nsay(state='done', peak_bytes=77)"
    outcome = run_worker(Job(""), 60, 1 << 40, script(READY + lines))
    assert (outcome.status, outcome.seconds, outcome.peak_bytes) == ("ok", [0.5], 77)
    assert (outcome.parameters, outcome.macs, outcome.device) == (5, 2.0, "d")


@pytest.mark.parametrize(
    ("text", "seconds", "memory", "status"),
    [
        (READY + "time.sleep(60)", 0.2, 1 << 40, "did not fit: over 0 s an image"),
        (READY + "say(warm=True, seconds=99)\ntime.sleep(60)", 10, 1 << 40, "did not fit: over 10 s an image"),
        ("x = bytearray(300 << 20)\ntime.sleep(60)", 60, 100 << 20, "did not fit: over 0 GiB"),
        ("say(state='failed', error='RuntimeError: CUDA out of memory')", 60, 1 << 40, "did not fit: out of memory"),
        ("say(state='failed', error='ValueError: no')", 60, 1 << 40, "failed: ValueError: no"),
        (READY + "say(warm=True, seconds=0.5)\nsys.exit(4)", 60, 1 << 40, "failed: the process ended with code 4"),
        ("sys.exit(3)", 60, 1 << 40, "failed: the process ended with code 3"),
    ],
)
def test_limits_and_failures_have_words(text: str, seconds: float, memory: int, status: str) -> None:
    assert run_worker(Job(""), seconds, memory, script(text)).status == status


def test_a_start_that_takes_too_long_is_no_slow_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.2)
    assert "not ready after" in run_worker(Job(""), 60, 1 << 40, script("time.sleep(60)")).status


@pytest.mark.slow
def test_a_real_worker_measures_a_small_network() -> None:
    job = Job(
        "registry:isdnet-lite0", size=(64, 96), device="cpu", classes=3, precision="float32", repeats=2, count=True
    )
    outcome = run_worker(job, 100, 20 << 30)
    assert outcome.status == "ok"
    assert len(outcome.seconds) == 2
    assert outcome.parameters == sum(p.numel() for p in ISDNet(ISDNetConfig.lite(3).inference()).parameters())
    assert outcome.macs is not None
    assert outcome.macs > 1e6
    assert outcome.peak_bytes > 50 << 20


def test_the_log_keeps_finished_runs_and_refuses_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    log = RunLog(path, ("name", "seed", "miou"), ("name", "seed"), ["the command\nhere"])
    log.add({"name": "x, y", "seed": 1, "miou": 0.25})
    again = RunLog(path, ("name", "seed", "miou"), ("name", "seed"), ["the command here"])
    assert again.done(name="x, y", seed=1)
    assert not again.done(name="x, y", seed=2)
    again.add({"name": "z", "seed": 2})
    assert path.read_text().splitlines()[0] == "# the command here"
    assert path.read_text().count("#") == 1
    assert [r["miou"] for r in read_csv(path)] == ["0.25", ""]
    with pytest.raises(InputError, match="another --output"):
        RunLog(path, ("name", "miou"), ("name",))


def test_a_plot_of_rows_with_and_without_figures(tmp_path: Path) -> None:
    rows = [
        {"network": n, "mode": "whole", "height": 64, "width": 64, "fps": f} for n, f in (("isdnet", 2.0), ("b", None))
    ]
    plot_speed(rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    write_csv(tmp_path / "r.csv", ("network", "fps"), rows)
    assert read_csv(tmp_path / "r.csv")[1] == {"network": "b", "fps": ""}


def test_the_yardstick_pyramid_is_the_same_function() -> None:
    x = torch.randn(1, 3, 45, 38, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ConvolvedPyramid(2).residuals(x), LaplacianPyramid(2).residuals(x), atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_the_path_is_measured_against_both_plain_forwards() -> None:
    torch.manual_seed(0)
    net = ISDNet(ISDNetConfig.lite(4).inference()).eval()
    steps = measure_path(net, torch.randn(1, 3, 64, 96), device="cpu", rounds=2)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            rows = {r["variant"]: r for r in stop.value}
            break
    assert rows["float32 plain"]["ratio_plain"] == rows["float32 eager"]["ratio_eager"] == 1
    assert rows["float32 plain"]["agreement"] > 0.999
    assert rows["float32 prepared"]["agreement"] > 0.999
    json.dumps(list(rows.values()))


def test_a_compiler_that_fails_leaves_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ISDNet(ISDNetConfig.lite(3).inference()).eval()

    def broken(*args: object, **kwargs: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    run, _ = compiled(net)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="no compiler"):
            first = run(x)
        assert torch.equal(first, net.coarse_logits(x))
        assert torch.equal(run(x), first)


@pytest.mark.long
def test_every_variant_of_the_ablation_builds_and_learns_nothing_undefined() -> None:
    small = {"channels": 16, "distillation": "sampled", "distillation_points": 16}
    x, y = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    seen = {json.dumps(change, sort_keys=True): change for table in VARIANTS.values() for change in table.values()}
    for change in seen.values():
        losses = build("isdnet-lite0", 3, False, {**small, **change}).losses(x, y)
        assert torch.isfinite(losses["total"])
        assert ("distillation" in losses) == (
            change.get("distillation", 1) is not None and change.get("branches") != "shallow"
        )


def test_summary_gives_mean_and_spread() -> None:
    rows = [{"table": 7, "variant": "a", "miou": v} for v in ("0.2", "0.4")] + [{"table": 5, "variant": "b", "miou": 1}]
    assert summary(rows) == [
        {"table": "5", "variant": "b", "seeds": 1, "miou": 1.0, "std": None},
        {"table": "7", "variant": "a", "seeds": 2, "miou": 0.3, "std": 0.1414},
    ]


def test_strokes_lie_inside_regions_of_their_class() -> None:
    truth = np.full((120, 120), 255, np.uint8)
    truth[5:60, 5:100], truth[70:110, 20:60], truth[100, 100] = 0, 2, 1
    for seed in range(5):
        strokes = draw(truth, np.random.default_rng(seed))
        assert [index for index, _ in strokes] == [0, 2]  # one pixel of class 1 has no room for a brush
        for index, brush in strokes:
            window = brush.cover(truth.shape).bounds
            mask = np.broadcast_to(brush.cover(truth.shape).mask(window), window.shape)
            assert (truth[window.slices][mask] == index).all()
            assert mask.sum() >= np.pi * RADIUS**2 * 0.7
