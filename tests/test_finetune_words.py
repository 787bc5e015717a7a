"""What the Fine-tune dock says and computes of a run, without Qt and without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("qtpy")  # the package of widgets needs it, these modules do not

from napari_isdnet_training.unfinished import Unfinished, so_far, unfinished

from napari_isdnet.annotation.project import ModelEntry
from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.widgets import _finetune_words as words
from napari_isdnet.widgets._finetune_changes import areas, changes
from napari_isdnet.widgets._finetune_controller import Annotated
from napari_isdnet.widgets._finetune_job import TuneSettings, command
from napari_isdnet.window import Window

ENTRY = ModelEntry("m004", "field quick 4", "models/m004.safetensors", "m003", 12, "abc", 0.0)

SCORES = {"held_out_before": {"miou": 0.5}, "held_out_after": {"miou": 0.7}}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, ["the last layers", "asked to stay", "Every 20 steps", "after 3 judgements"]),
        ({"allow_worse": False}, ["unless these places got worse by more than chance"]),
        ({"preset": "thorough", "steps": 400}, ["the whole network", "Every 40 steps", "after 4 judgements"]),
        ({"model": "backbone"}, ["everything but the pretrained branches"]),
        ({"steps": 5}, ["Every 5 steps"]),
        ({"allow_worse": True}, ["even if the held-out places got worse"]),
        ({"held_out": 0.0}, ["nothing can tell"]),
    ],
)
def test_guards_are_said(chosen: dict[str, Any], said: list[str]) -> None:
    text = words.guards(TuneSettings(**{"model": "m", **chosen}))
    assert "replay" in text
    for part in said:
        assert part in text


def test_classes_are_new_or_dropped_as_training_matches_them() -> None:
    taught = ("building", "land", "bare soil", "")  # the last is only listed
    assert words.class_changes(["Building", "Land", "Bare  Soil"], taught, {}) == []
    said = words.class_changes(["Land", "nuclei"], taught, {})
    assert said == ["new: nuclei", "not in the annotation, so dropped: bare soil, building"]
    said = words.class_changes(["Land", "nuclei"], taught, {"building": "nuclei"})
    assert said == ["'building' is called 'nuclei' now", "not in the annotation, so dropped: bare soil"]
    assert words.class_changes([], taught, {}) == []


def test_judgements_are_against_the_best_so_far() -> None:
    before = {"miou": 0.5}
    assert words.judgement(0, before, {}, None) == "Before: mIoU 0.500 on the held-out places."
    taken = {"taken": 1.0}
    assert words.judgement(20, {"miou": 0.6, **taken}, before, 0.5).endswith("0.600, better than 0.500: taken.")
    assert words.judgement(20, {"miou": 0.6, **taken}, before, None).endswith("0.600, better than 0.500: taken.")
    assert words.judgement(40, {"miou": 0.55, "taken": 0.0}, before, 0.6).endswith(
        "worse than 0.600 by more than chance: the weights kept before stay."
    )
    assert words.judgement(20, {"miou": 0.47, **taken}, before, 0.5).endswith(
        "0.470, below 0.500 by no more than chance: taken."
    )
    assert words.judgement(40, {"miou": 0.6, **taken}, before, 0.6).endswith("the same as before: taken.")
    assert words.judgement(40, {}, before, 0.6) == ""


@pytest.mark.parametrize(
    ("entry", "result", "stopped", "said"),
    [
        (ENTRY, {"steps": 80, "best_step": 60, **SCORES}, False,
         "m004 is the model in use now: step 60 of 80, since the held-out places got worse then, held-out mIoU 0.500"),
        (ENTRY, {"steps": 80, "best_step": 80, "reason": "one region"}, False, "Not judged: one region."),
        (None, {"steps": 80, "reason": "no better"}, False, "The model stays as it was: no better."),
        (ENTRY, {"steps": 33, "of": 80}, True, "Stopped at step 33 of 80. The last weights taken are kept as m004."),
        (None, {"steps": 3, "of": 80}, True, "No weights were taken yet"),
        (None, {}, True, "Stopped. No weights"),
    ],
)  # fmt: skip
def test_endings_are_said(entry: ModelEntry | None, result: dict[str, Any], stopped: bool, said: str) -> None:
    assert said in words.ending(entry, result, stopped)


def test_times_are_rounded_as_people_do() -> None:
    assert [words.duration(s) for s in (2, 33, 100, 6000, 9000)] == [
        "about 5 s", "about 35 s", "about 2 min", "about 1.7 h", "about 2.5 h"
    ]  # fmt: skip
    assert "34 of 80 steps" in words.left_over(Unfinished(34, 80, 20))


def test_the_command_names_what_differs_from_a_readers_choice(tmp_path: Any) -> None:
    plain = command("a b.tif", tmp_path / "p", tmp_path / "o.safetensors", TuneSettings("backbone"))
    assert "'a b.tif'" in plain
    assert "--contrast" not in plain
    full = TuneSettings("m", contrast="0,4095", channels=(3, 2, 1), allow_worse=True, window=256, batch=3)
    line = command("a.tif", tmp_path / "p", tmp_path / "o.safetensors", full)
    assert line.endswith("--window 256 --batch 3 --contrast 0,4095 --channels 3,2,1 --allow-worse")
    assert full.options()["contrast"] == [0.0, 4095.0]
    assert not {"model", "parent", "threads"} & full.options().keys()


def test_a_run_without_checkpoint_is_none(tmp_path: Any) -> None:
    output = tmp_path / "m.safetensors"
    assert unfinished(output) is None
    assert so_far(output) == {"model": None}
    folder = tmp_path / "m.ckpt"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"damaged")
    assert unfinished(output) is None


def pyramid(value: int) -> PredictionPyramid:
    return PredictionPyramid((2048, 3000), (512, 512), lambda w: np.full(w.shape, value, np.uint8))


@pytest.mark.parametrize("view", [Window(0, 0, 2048, 3000), Window(100, 200, 300, 411)])
def test_areas_are_level_0_pixels_of_the_view(view: Window) -> None:
    found = pyramid(1)
    counts, known = areas(found, view, 3)
    assert (sum(counts), known) == (0, 0)
    assert found.wait(20)  # asking was enough to have it computed
    counts, known = areas(found, view, 3)
    assert known == 1
    assert counts[1] == pytest.approx(view.area)
    assert counts[0] == counts[2] == 0
    found.close()


def test_changes_go_by_name_also_where_the_class_lists_differ() -> None:
    old, new = classes_from(["soil", "crop"]), classes_from(["crop", "water"])
    rows = changes((old, [10, 20]), (new, [25, 5]), ({"iou_crop": 0.4}, {"iou_crop": 0.5, "iou_water": 0.9}))
    assert [(r.info.name, r.area_before, r.area_after, r.iou_before, r.iou_after) for r in rows] == [
        ("crop", 20, 25, 0.4, 0.5), ("water", None, 5, None, 0.9), ("soil", 10, None, None, None)
    ]  # fmt: skip
    assert isinstance(rows[0].info, ClassInfo)
    assert [r.area_before for r in changes(None, (new, [1, 2]), ({}, {}))] == [None, None]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ((1, 0), ""),
        ((1, 4), "'b' is painted only in places held out, so nothing teaches it yet."),
        ((9, 4), "'a', 'b' are painted only in places held out, so nothing teaches them yet."),
    ],
)
def test_a_class_that_is_only_judged_is_named(held: tuple[int, ...], words: str) -> None:
    found = Annotated(classes_from(["a", "b"]), (9, 4), held, (2, 1), 0)
    assert found.untaught == words
    assert not found.missing  # a model that knows the class can be judged by it
