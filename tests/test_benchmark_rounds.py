"""The speed benchmark's rounds: kept, gone on with, never mixed with others; how long it takes; what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from napari_isdnet_training.benchmark import speed as module
from napari_isdnet_training.benchmark.entries import choose_entries
from napari_isdnet_training.benchmark.listed import LISTED
from napari_isdnet_training.benchmark.output import read_csv
from napari_isdnet_training.benchmark.process import Job, Outcome
from napari_isdnet_training.benchmark.rounds import Series, seconds_left
from napari_isdnet_training.benchmark.speed import SpeedOptions, speed
from napari_isdnet_training.cli import main

from napari_isdnet.exceptions import InputError
from tests.benchmark_tools import drain

OPTIONS = SpeedOptions(sizes=((64, 96),), device="cpu", precision="float32", rounds=2, repeats=2)
NAMES = ["isdnet-lite", "unet"]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that were run; each takes a hundredth of a second more than the last, DeepLab does not fit."""
    taken: list[Job] = []

    def run(job: Job, seconds: float, memory: int) -> Outcome:
        taken.append(job)
        if job.entry.startswith("deeplab"):
            return Outcome("did not fit: over 60 s an image")
        time = len(taken) / 100
        return Outcome("ok", [time] * job.repeats, 5 << 20, 1_000_000, 2.5e9 if job.count else None, "a machine")

    monkeypatch.setattr(module, "run_worker", run)
    return taken


def test_a_stopped_run_goes_on_and_gives_the_same_table(jobs: list[Any], tmp_path: Path) -> None:
    whole = drain(speed(choose_entries(NAMES), OPTIONS, (), tmp_path / "whole.csv"))
    wanted = len(jobs)
    assert wanted == 8  # isdnet-lite whole, UNet whole, local, global; two rounds
    jobs.clear()
    steps = speed(choose_entries(NAMES), OPTIONS, (), tmp_path / "r.csv", ["command"])
    for _ in range(3):
        next(steps)
    steps.close()
    assert len(read_csv(tmp_path / "r.csv")) == len(jobs) == 3
    first = (tmp_path / "r.csv").read_text()
    rows = drain(speed(choose_entries(NAMES), OPTIONS, (), tmp_path / "r.csv", ["command"]))
    assert len(jobs) == wanted
    assert rows == whole
    assert (tmp_path / "r.csv").read_text().startswith(first)
    assert rows[0]["gmacs"] == 2.5
    assert rows[0]["ratio"] == 1
    # other settings are other measurements, more rounds are more of the same
    drain(speed(choose_entries(NAMES), SpeedOptions(**{**vars(OPTIONS), "repeats": 3}), (), tmp_path / "r.csv"))
    assert len(jobs) == 2 * wanted
    drain(speed(choose_entries(NAMES), SpeedOptions(**{**vars(OPTIONS), "rounds": 3}), (), tmp_path / "r.csv"))
    assert len(jobs) == 2 * wanted + wanted // 2


def test_what_did_not_fit_is_not_tried_again_and_what_is_absent_is_not_kept(
    jobs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_isdnet_training.benchmark import refine

    monkeypatch.setattr(refine.importlib.util, "find_spec", lambda name: None)
    entries = choose_entries(["isdnet-lite", "deeplabv3plus", "pspnet+guided"])
    for _ in range(2):
        rows = drain(speed(entries, OPTIONS, (), tmp_path / "r.csv"))
    assert [j.entry for j in jobs].count("deeplabv3plus") == 3  # once a mode
    states = {r["network"]: r["status"] for r in rows}
    assert states["deeplabv3plus"] == "did not fit: over 60 s an image"
    assert states["pspnet+guided"].startswith("not available here: kornia is not installed")
    assert not any(r["network"] == "pspnet+guided" for r in read_csv(tmp_path / "r.csv"))
    with pytest.raises(InputError, match="None of these networks is measured in mode quarter"):
        drain(speed(choose_entries(NAMES), OPTIONS, ("quarter",)))


def test_the_time_left_counts_what_each_series_took() -> None:
    small, large, lost, new = (
        Series(choose_entries(["unet"])[0], "whole", size)
        for size in ((1000, 500), (1000, 2000), (1000, 500), (1000, 1500))
    )
    everything = [small, large, lost, new]
    assert seconds_left(everything, 3, 1024, 1e9) is None
    small.rounds, small.walls = [Outcome(), Outcome()], [2.0, 4.0]
    assert small.work(1024) == pytest.approx(1.0)
    large.rounds, large.walls = [Outcome()], [12.0]
    assert large.work(1024) == pytest.approx(2.5)
    lost.rounds, lost.walls = [Outcome("did not fit: over 60 s an image")], [6.0]
    rate = (3 + 12 + 6) / (1 + 2.5 + 1)
    assert seconds_left(everything, 3, 1024, 1e9) == pytest.approx(3 * 1 + 12 * 2 + rate * 2.0 * 3)
    assert seconds_left(everything, 3, 1024, 5.0) == pytest.approx(3 * 1 + 12 * 2 + 5 * 3)
    assert Series(new.entry, "global", (2048, 2048)).work(1024) == pytest.approx(0.5 + 1024**2 / 1e6)
    assert Series(new.entry, "half", (1000, 2000)).work(1024) == pytest.approx(1.0)


def test_progress_never_goes_back_and_ends_with_nothing_left(jobs: list[Any]) -> None:
    shown = list(speed(choose_entries(NAMES), OPTIONS))
    fractions = [p.fraction for p in shown]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert shown[-1].seconds_left == pytest.approx(0)


def test_the_command_writes_table_rounds_and_plot_and_lists_the_rest(
    jobs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "x.csv", tmp_path / "x.png"
    command = ["benchmark", "speed", "--size", "64x96", "--rounds", "1", "--device", "cpu", "--network", "unet"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--output", str(output), "--plot", str(plot)])
    assert end.value.code == 0
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert len(read_csv(tmp_path / "x.rounds.csv")) == 3
    rows = read_csv(output)
    assert [r["network"] for r in rows] == ["unet"] * 3 + [one.name for one in LISTED]
    assert {"GLNet", "FCtL", "MagNet", "PPN", "SegFix", "CascadePSP"} <= {r["network"] for r in rows}
    for row in rows[3:]:
        assert row["fps"] == ""
        assert "not measured here" in row["status"]
    assert [(r["published_fps"], r["published_miou"]) for r in rows if r["published_fps"]] == [("27.7", "73.3")]
    said = capsys.readouterr().out
    assert "0.8 of the stated side" in said
    assert "0.8 of the stated side" in output.read_text()
    assert "27.7 images a second at 2448 x 2448" in said
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["rows"]) == 3 + len(LISTED)
