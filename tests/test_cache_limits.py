"""The cache does not grow for good: what nobody uses goes when something new is kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from napari_isdnet.engine import job
from napari_isdnet.engine.job import load_means, save_means
from napari_isdnet.engine.ledger import Ledger
from napari_isdnet.engine.means import NAMES, Means
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.overviews import KEPT_DAYS, build_overviews, with_overviews
from napari_isdnet.progress import result_of
from napari_isdnet.widgets._engine import KEPT_JOBS, LocalEngine, _forget_interrupted
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of


def used_days_ago(path: Path, days: float) -> None:
    os.utime(path, times=(time.time() - days * 86_400,) * 2)


def test_means_that_were_used_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path))
    monkeypatch.setattr(job, "KEPT_MEANS", 2)
    found = Means([np.ones((3, 1, 1))], {name: np.ones(3) for name in NAMES})
    for age, key in enumerate("cba", start=1):
        save_means(key, found)
        used_days_ago(tmp_path / "means" / f"{key}.safetensors", age)
    assert sorted(path.stem for path in tmp_path.glob("means/*")) == [
        "a",
        "c",
    ]  # of b and c the first was used longer ago
    assert load_means("a") is not None
    save_means("d", found)
    assert sorted(path.stem for path in tmp_path.glob("means/*")) == ["a", "d"]


def test_pyramids_that_nobody_opened_for_long_go_when_another_is_built(tmp_path: Path) -> None:
    images = [ArraySource([np.full((2100, 40, 3), value, np.uint8)], "image") for value in range(3)]
    first, second = (result_of(build_overviews(image, tmp_path)) for image in images[:2])
    for path in (first, second):
        used_days_ago(path / "done.json", KEPT_DAYS + 1)
    with_overviews(images[1], tmp_path)
    third = result_of(build_overviews(images[2], tmp_path))
    assert not first.exists()
    assert second.is_dir()
    assert third.is_dir()


def test_of_interrupted_searches_the_last_few_stay_and_none_that_is_worked_on(tmp_path: Path) -> None:
    jobs = [tmp_path / f"{number}.job" for number in range(KEPT_JOBS + 4)]
    for number, folder in enumerate(jobs):
        Ledger.open(folder, {}).close()
        (folder / "maps").mkdir()
        used_days_ago(folder / "ledger.log", 10 - number)
    with Ledger.open(jobs[0], {}):
        used_days_ago(jobs[0] / "ledger.log", 20)
        _forget_interrupted(jobs[1])  # which is gone on with
    assert [folder.is_dir() for folder in jobs] == [True, True, False, False] + [True] * KEPT_JOBS


def test_a_search_that_was_interrupted_goes_once_the_means_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_isdnet.model.checkpoint import save_model

    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    file = str(save_model(lively(small()), tmp_path / "m.safetensors", half=False))
    image = picture((64, 64))
    source, policy = source_of(image), policy_of(image)
    live = tmp_path / "live"

    def search():
        return LocalEngine(live).exact(source, file, "cpu", policy, None)

    interrupted = search()
    while not list(live.glob("*/ledger.json")):
        next(interrupted)
    interrupted.close()
    (left,) = live.glob("*.job")
    kept = left.with_name("kept")
    left.rename(kept)
    result_of(search()).close()
    kept.rename(left)  # as if its process had been killed, and another one had found the means
    work = result_of(search())
    assert not left.exists()
    assert work.compute(Window(0, 0, 64, 64)).shape == (64, 64)
    work.close()
