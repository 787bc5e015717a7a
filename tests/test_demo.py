"""The demo: one command that does the main job on a landscape it makes, and says what its figures are of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_isdnet import cli, demo, demo_files, demo_text
from napari_isdnet.classes import classes_from
from napari_isdnet.demo_pictures import sheet
from napari_isdnet.engine.evaluate import evaluate_files
from napari_isdnet.exceptions import InputError
from napari_isdnet.io import samples
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.landcover import LANDCOVER_CLASSES
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.network_tools import lively, small

SIDE = 320


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = lively(small())
    network.header = replace(
        network.header, classes=LANDCOVER_CLASSES, name="tiny", figures={"validation": {"miou": 0.625}}
    )
    return save_model(network, tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = samples.Sample("desert-4k", "small", partial(samples._aerial, "desert-4k", SIDE, 60), True)
    monkeypatch.setattr(samples, "_SAMPLES", (own, *samples._SAMPLES[-1:]))
    monkeypatch.setattr(demo_files, "DETAIL", 128)
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """One whole headless demo."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    with pytest.MonkeyPatch.context() as patch:
        small_world.__wrapped__(patch, tmp_path_factory)  # type: ignore[attr-defined]
        facts, fractions = finish(demo.demo(headless=True, output=folder, model=str(model)))
    assert fractions == sorted(fractions), "progress went back"
    assert fractions[-1] == 1
    return folder, facts


def finish(steps) -> tuple[dict, list[float]]:
    fractions = []
    return result_of(steps, lambda step: fractions.append(step.fraction)), fractions


def test_everything_that_is_named_exists_and_is_readable(done: tuple[Path, dict]) -> None:
    folder, facts = done
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(facts, default=str))
    assert set(facts["pictures"]) == {"overview", "detail", "overlay"}
    for path in facts["pictures"].values():
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50
    assert "<html" in Path(facts["report"]).read_text(encoding="utf-8")
    assert (folder / "README.txt").read_text().startswith("napari-isdnet demo")
    assert not list(folder.rglob("*.partial*"))


def test_figures_are_those_of_the_files_that_were_written(done: tuple[Path, dict]) -> None:
    folder, facts = done
    again, _ = finish(evaluate_files(folder / "result" / "desert-4k.ome.zarr", folder / "desert-4k_truth.tif"))
    assert facts["figures"]["accuracy"] == pytest.approx(again.accuracy)
    assert facts["figures"]["mean_iou"] == pytest.approx(again.mean_iou)
    # ... and of the exact truth, not of one that went through the picture's lossy compression.
    world = ProceduralWorld((SIDE, SIDE), seed=60)
    whole = Window.whole((SIDE, SIDE))
    with Image.open(folder / "result" / "desert-4k.png") as picture:
        found = np.asarray(picture)
    assert facts["figures"]["accuracy"] == pytest.approx((found == world.truth.read(whole)[..., 0]).mean())


def test_a_region_is_the_crop_of_the_whole_and_a_cut_out_is_not(done: tuple[Path, dict]) -> None:
    differing = done[1]["region"]["differing_pixels"]
    assert differing["as_region"] == 0
    assert differing["cut_out"] > 0


def test_the_text_says_what_the_figures_are_of(done: tuple[Path, dict]) -> None:
    facts = done[1]
    text = demo.describe({**facts, "notes": ["there is no screen: written to files instead."]})
    assert text.startswith("there is no screen")
    assert "a generated landscape with exact truth, not a photograph" in text
    assert "no measure of the model on photographs" in text
    assert "states a mean of 62.5 %" in text
    for path in (*facts["pictures"].values(), facts["report"], facts["json"]):
        assert path in text
    for name, value in facts["figures"]["iou"].items():
        assert name in text
        assert value is None or f"{100 * value:.1f} %" in text


def test_the_next_commands_are_ones_that_exist(done: tuple[Path, dict]) -> None:
    import shlex

    from tests.test_readme import check

    commands = [shlex.split(line) for line in demo_text.next_commands(done[1])]
    assert len(commands) == 3
    for words in commands:
        check(words)
    ran = cli.run(cli.app, [*commands[1][1:], "--json"], "napari-isdnet")
    assert ran == 0
    assert (done[0] / "again" / "report.html").exists()


def test_it_can_run_again_in_its_folder_but_not_in_another_one(done: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = done
    assert demo_files.claim_folder(folder) == folder.resolve()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        demo_files.claim_folder(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        demo_files.claim_folder(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_where_nothing_can_be_written_the_cache_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.demo_folder(None) == (tmp_path / demo.FOLDER, None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    folder, note = demo.demo_folder(None)
    assert folder.parent != tmp_path
    assert note is not None
    assert str(folder) in note


@pytest.mark.long
def test_other_classes_give_pictures_without_figures(tmp_path: Path) -> None:
    network = lively(small(classes=3))
    network.header = replace(network.header, classes=classes_from(["a", "b", "c"]))
    path = save_model(network, tmp_path / "other.safetensors")
    facts, _ = finish(demo.demo(headless=True, output=tmp_path / "out", model=str(path)))
    assert facts["figures"] is None
    assert facts["report"] is None
    text = demo.describe(facts)
    assert "not those of the generated landscape" in text
    assert "Against its truth" not in text


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="There is no model 'nosuch'"):
        finish(demo.demo(headless=True, output=tmp_path / "a", model="nosuch"))
    with pytest.raises(InputError, match="no landscape 'moon'; choose one of desert-4k"):
        finish(demo.demo(headless=True, output=tmp_path / "a", model=str(model), sample="moon"))
    with pytest.raises(InputError, match="no landscape"):
        finish(demo.demo(headless=True, output=tmp_path / "a", model=str(model), sample="photograph"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("missing", ["napari", "qtpy"])
def test_without_napari_it_goes_on_without_a_window(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == missing else real(name))
    assert "napari is not installed" in (demo.why_no_window() or "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a screen")
def test_without_a_screen_it_goes_on_without_a_window(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    pytest.importorskip("napari")
    pytest.importorskip("PyQt6")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "no screen" in (demo.why_no_window() or "")
    monkeypatch.setenv("DISPLAY", ":987")  # nothing listens there: Qt would end this very process
    assert "does not answer" in (demo.why_no_window() or "")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    assert "has no screen" in (demo.why_no_window() or "")
    monkeypatch.setattr(demo, "why_no_window", lambda: "there is no screen")
    monkeypatch.setattr(demo_files, "run_files", lambda folder, model, sample, notes: iter_facts(notes))
    facts, _ = finish(demo.demo(output=tmp_path / "out", model=str(model)))
    assert facts["notes"] == ["there is no screen: written to files instead."]


def iter_facts(notes):
    yield from ()
    return {"notes": notes}


def test_headless_needs_neither_napari_nor_qt() -> None:
    code = (
        "import sys, napari_isdnet.demo_files, napari_isdnet.demo_pictures\n"
        "import napari_isdnet.demo, napari_isdnet.demo_text\n"
        "print(sorted({'napari', 'qtpy', 'PyQt6', 'vispy', 'matplotlib'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_sheet_holds_its_panels_where_their_titles_say() -> None:
    colors = {"Image": (1, 90, 2), "Truth": (3, 90, 4), "Errors": (5, 90, 6)}
    whole = sheet([(name, np.full((40, 400, 3), color, np.uint8)) for name, color in colors.items()], LANDCOVER_CLASSES)
    corners = []
    for color in colors.values():
        rows, columns = np.nonzero((whole == color).all(axis=2))
        assert (rows.size, np.ptp(rows), np.ptp(columns)) == (16000, 39, 399)
        corners.append((rows.min(), columns.min()))
    assert corners[0][0] == corners[1][0] < corners[2][0]  # two in a row, the third below the first
    assert corners[0][1] == corners[2][1] < corners[1][1]
    first = (whole[corners[2][0] + 40 :] == LANDCOVER_CLASSES[0].color).all(axis=2)
    assert first.any(), "no legend below the panels"
