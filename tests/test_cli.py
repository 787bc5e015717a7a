"""The command line as a user meets it: results on stdout, one sentence on stderr, and the exit code."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import typer

from napari_isdnet import cli
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window
from tests.cli_tools import Ran, Runner, runner

FILE_GIVEN = "test_cli.py is a file, not a folder for results; choose another --output folder."
COMMANDS = {"annotation", "demo", "sample", "info", "segment", "evaluate", "features", "models", "convert"}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Runner:
    return runner(capfd)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    rows, columns = np.mgrid[:70, :90]
    tifffile.imwrite(path, np.stack([rows, columns, rows + columns], -1).astype(np.uint8), photometric="rgb")
    return path


def one_line(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    assert ran.out == ""


# ------------------------------------------------------------------------------------------------- usage


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom napari_isdnet import cli\ncode = cli.run(cli.app, ['--help'], 'napari-isdnet')\n"
        "heavy = {'torch', 'numpy', 'napari', 'zarr', 'tifffile'} & sys.modules.keys()\nprint(code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("0 []")
    for command in COMMANDS:
        assert f" {command} " in done.stdout


ANNOTATION = ("info", "import", "export", "repair", "suggest")


@pytest.mark.parametrize("command", sorted(COMMANDS - {"annotation"}) + [f"annotation {c}" for c in ANNOTATION])
def test_every_command_has_help(run: Runner, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    assert "--json" in ran.out


def test_the_options_other_programs_are_written_against_exist() -> None:
    group: Any = typer.main.get_command(cli.app)
    wanted = {
        "demo": "headless output",
        "sample": "output yes",
        "segment": "output model context roi window format polygons geopackage simplify min_area probabilities"
        " uncertainty device precision memory contrast channels scale orientations skip_bad_tiles resume overwrite dask"
        " json",
        "evaluate": "classes ignore output json",
        "features": "output roi layer context",
        "convert": "output",
    }
    assert set(group.commands) == COMMANDS
    for command, names in wanted.items():
        assert set(names.split()) <= {p.name for p in group.commands[command].params}
    annotation: Any = group.commands["annotation"]
    assert set(annotation.commands) == set(ANNOTATION)


def test_the_help_of_maps_says_what_their_values_mean() -> None:
    group: Any = typer.main.get_command(cli.app)
    helps = {p.name: p.help for p in group.commands["segment"].params}
    for name, sure in (("probabilities", "254 is sure"), ("uncertainty", "0 is sure")):
        for words in (f"IMAGE_{name}", "0 to 254 for 0.0 to 1.0", sure, "255 where there is no data"):
            assert words in helps[name]


def test_version_and_no_command(run: Runner) -> None:
    assert run("--version").out.startswith("napari-isdnet ")
    ran = run()
    assert ran.code == 2
    assert "Usage" in ran.out + ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frob"], "No such command 'frob'"),
        (["segment", "a.tif"], "--output"),
        (["segment", "a.tif", "-o", "x", "--roi", "1,2,3"], "ROW,COL,HEIGHT,WIDTH"),
        (["segment", "a.tif", "-o", "x", "--roi", "0,0,0,5"], "holds no pixel"),
        (["segment", "a.tif", "-o", "x", "--channels", "0,1"], "three channel numbers"),
        (["segment", "a.tif", "-o", "x", "--contrast", "9,3"], "LOW below HIGH"),
        (["segment", "a.tif", "-o", "x", "--device", "tpu"], "cuda"),
        (["segment", "a.tif", "-o", "x", "--memory", "-1"], "above 0"),
        (["segment", "a.tif", "-o", "x", "--scale", "nan"], "above 0"),
        (["segment", "a.tif", "-o", "x", "--window", "7"], "32"),
        (["segment", "a.tif", "-o", "x", "--orientations", "3"], "1, 2, 4 or 8"),
        (["segment", "a.tif", "-o", "x", "--format", "bmp"], "ome-zarr"),
        (["segment", "one/a.tif", "two/a.ome.tif", "-o", "x"], "one name, 'a'"),
        (["segment", "a.png", "a_overlay.png", "-o", "x", "-f", "png"], "would both write a_overlay.png"),
        (["segment", "a.png", "a_uncertainty.tif", "-o", "x", "--uncertainty"], "both write a_uncertainty.ome.zarr"),
        (["segment", "a.tif", "-o", ""], "--output is empty"),
        (["features", "a.tif", "-o", " "], "--output is empty"),
        (
            ["evaluate", "a.tif", "b.tif", "-o", __file__],
            "test_cli.py is a file, not a folder for results; choose another --output",
        ),
        (["evaluate", "a.tif", "b.tif", "-o", ""], "--output is empty"),
        (
            ["segment", "a.tif", "-o", __file__],
            "test_cli.py is a file, not a folder for results; choose another --output",
        ),
        (
            ["segment", "a.tif", "-o", "/dev/full"],
            "/dev/full is a file, not a folder for results; choose another --output",
        ),
        (
            ["features", "a.tif", "-o", f"{__file__}/x"],
            "test_cli.py is a file, not a folder for results; choose another --output",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(run: Runner, arguments: list[str], words: str) -> None:
    one_line(run(*arguments), 2, words)


def test_failures_are_one_line_and_exit_1(run: Runner, tmp_path: Path, image: Path) -> None:
    one_line(run("info", tmp_path / "missing.tif"), 1, "missing.tif", "does not exist")
    one_line(run("segment", image, "-o", tmp_path / "out", "--model", "nosuch"), 1, "There is no model 'nosuch'")
    one_line(run("segment", image, "-o", tmp_path / "out", "--model", "lite"), 1, "without trained weights")
    one_line(run("convert", tmp_path / "no.pth", "-o", tmp_path / "m.safetensors"), 1, "There is no file")
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback_wherever_it_stands(run: Runner, tmp_path: Path) -> None:
    for arguments in (["--debug", "info", "missing.tif"], ["info", "missing.tif", "--debug"]):
        ran = run(*arguments)
        assert ran.code == 1
        assert "Traceback" in ran.err
        assert ran.err.strip().splitlines()[-1].startswith("Error: ")


def test_a_bug_is_called_a_bug(run: Runner, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("left\nright")

    monkeypatch.setattr("napari_isdnet.io.open.open_source", broken)
    one_line(run("info", image), 1, "KeyError", "this is a bug", "--debug")


# ------------------------------------------------------------------------------------------------- commands


def test_info(run: Runner, image: Path) -> None:
    ran = run("info", image, "--json")
    assert ran.code == 0
    assert (ran.json["rows"], ran.json["columns"], ran.json["channels"]) == (70, 90, 3)
    assert "rows: 70" in run("info", image).out


@pytest.mark.long
def test_models_agree_with_the_published_counts(run: Runner) -> None:
    ran = run("models", "--json")
    rows = {row["name"]: row for row in ran.json["models"]}
    reference = rows["reference-resnet18"]
    assert reference["parameters"] == pytest.approx(17.2e6, rel=0.02)
    assert reference["macs"] == pytest.approx(238e9, rel=0.02)
    assert not reference["trained"]
    table = run("models").out  # counted once: a configuration costs the same every time
    assert "17.2 M" in table
    assert "untrained configuration" in table


def test_evaluate(run: Runner, tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[:, 32:] = 1
    prediction = truth.copy()
    prediction[:16, :16] = 1
    for name, data in (("truth", truth), ("prediction", prediction)):
        tifffile.imwrite(tmp_path / f"{name}.tif", data)
    (tmp_path / "classes.txt").write_text("land\nwater #0000ff\n")
    arguments = ("evaluate", tmp_path / "prediction.tif", tmp_path / "truth.tif", "--classes", tmp_path / "classes.txt")
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["classes"][0]["iou"] == pytest.approx((2048 - 256) / 2048)
    assert ran.json["classes"][1]["iou"] == pytest.approx(2048 / (2048 + 256))
    one_line(run(*arguments, "--roi", "0,0,65,1"), 1, "The region 0,0,65,1 must lie inside prediction.tif of 64 x 64")
    truth[:12] = 255
    tifffile.imwrite(tmp_path / "marked.tif", truth)
    marked = (arguments[0], arguments[1], tmp_path / "marked.tif", *arguments[3:])
    table = run(*arguments).out
    assert "water" in table
    assert "87.5 %" in table
    assert "left out" not in table
    said = run(*marked).out.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "of 3 328 pixels; 768 left out, 255 or an ignored class in the truth" in said


# ------------------------------------------------------------------------------------------------- segment


@dataclass
class Engine:
    """Stands in for the engine, so that what reaches it and what is said of it can be seen."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0
    fail: Exception | type[BaseException] | None = None

    def segment(self, source: Any, model: Any, *, output: Path, **settings: Any) -> Generator[Progress, None, Any]:
        self.calls.append({"name": source.name, "output": output, **settings})
        try:
            yield Progress(1, 2, "shallow", None, 75.0)
            if self.fail is not None:
                raise self.fail
            yield Progress(2, 2, "fuse")
        finally:
            self.closed += 1
        figures = {"pixels": 100, "seconds": 2.0, "pixels_per_second": 50.0, "peak_rss_bytes": 2**30}
        labels = {"device": "cpu", "precision": "float32", "context": settings["context"]}
        facts = {"outputs": {"labels": str(output / f"{source.name}.ome.zarr")}, **figures, **labels}
        return types.SimpleNamespace(to_dict=lambda: facts)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    module = types.ModuleType("napari_isdnet.engine.segment")
    module.segment = fake.segment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari_isdnet.engine.segment", module)
    monkeypatch.setattr("napari_isdnet.model.checkpoint.load_model", lambda name: f"model {name}")
    return fake


def test_segment_hands_every_option_to_the_engine(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    options = "--context window --roi 0,8,16,32 --window 512 --format png --format geotiff --polygons --simplify 2"
    options += (
        " --geopackage --min-area 40 --probabilities --uncertainty --device cuda:1 --precision bfloat16 --memory 1.5"
    )
    options += " --contrast 0,4095 --channels 2,1,0 --scale 0.5 --orientations 4 --skip-bad-tiles --no-resume"
    options += " --overwrite --dask local --geopackage"
    ran = run("segment", image, "-o", tmp_path / "out", "-m", "mine", *options.split(), "--json")
    assert ran.code == 0, ran.err
    assert engine.calls == [
        {
            "name": "scene",
            "output": tmp_path / "out",
            "context": "window",
            "roi": Window(0, 8, 16, 32),
            "window": 512,
            "formats": ("png", "geotiff"),
            "polygons": True,
            "geopackage": True,
            "simplify": 2.0,
            "min_area": 40,
            "probabilities": True,
            "uncertainty": True,
            "device": "cuda:1",
            "precision": "bfloat16",
            "memory": 1.5,
            "contrast": (0.0, 4095.0),
            "channels": (2, 1, 0),
            "scale": 0.5,
            "orientations": 4,
            "skip_bad_tiles": True,
            "resume": False,
            "overwrite": True,
            "dask": "local",
        }
    ]
    keys = {"outputs", "pixels", "seconds", "pixels_per_second", "peak_rss_bytes", "device", "precision", "context"}
    assert keys <= set(ran.json)
    assert [keys <= set(one) for one in ran.json["images"]] == [True]  # as of several images
    assert ran.json["failed"] == {}
    assert len(ran.out.strip().splitlines()) == 1


def test_segment_defaults_and_words(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    ran = run("segment", image, "-o", tmp_path / "out", "-m", "mine")
    call = engine.calls[0]
    assert (call["context"], call["formats"], call["device"], call["contrast"]) == (
        "whole",
        ("ome-zarr",),
        "auto",
        "auto",
    )
    assert (call["scale"], call["resume"], call["roi"], call["memory"]) == (1.0, True, None, None)
    assert "scene: shallow 50%, about 1 min 15 s left" in ran.err
    assert str(tmp_path / "out" / "scene.ome.zarr") in ran.out
    assert "whole context" in ran.out


def test_one_bad_image_among_many_fails_alone(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\x00 not a tiff")
    ran = run("segment", bad, image, "-o", tmp_path / "out", "-m", "mine", "--json")
    assert ran.code == 1
    assert [call["name"] for call in engine.calls] == ["scene"]
    assert list(ran.json["failed"]) == [str(bad)]
    assert ran.json["pixels"] == 100
    assert [entry["image"] for entry in ran.json["images"]] == [str(image)]
    errors = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("segment", "none.tif", "-o", "out"), 1, "none.tif"),
        (("segment", "a.tif", "-o", "out", "--window", "two"), 2, "--window"),
        (("info", "none.tif"), 1, "none.tif"),
        (("annotation", "info", "none.tif"), 1, "none.tif"),
    ],
)
def test_programs_get_an_error_as_json_too(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments, "--json")
    assert (ran.code, ran.json["exit_code"]) == (code, code)
    assert said in ran.json["error"]
    assert ran.err.strip().splitlines()[-1] == f"Error: {ran.json['error']}"
    assert run(*arguments).out == ""


def test_an_error_in_a_batch_names_its_image(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    engine.fail = InputError("The image is 31 x 31 pixels.")
    text = tmp_path / "text.tif"
    text.write_text("hello")
    ran = run("segment", image, text, "-o", tmp_path / "out", "-m", "mine")
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert errors[0] == f"Error: {image}: The image is 31 x 31 pixels."
    assert errors[1].startswith("Error: text.tif is no image format")  # named once, not twice


def test_an_image_given_twice_is_segmented_once(
    run: Runner, engine: Engine, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    ran = run("segment", image.name, f"./{image.name}", image, "-o", tmp_path / "out", "-m", "mine", "--json")
    assert ran.code == 0, ran.err
    assert [call["name"] for call in engine.calls] == ["scene"]
    assert len(ran.json["images"]) == 1


def test_an_error_in_the_middle_closes_the_engine(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    engine.fail = InputError("The ledger belongs to another model; use --overwrite.")
    ran = run("segment", image, "-o", tmp_path / "out", "-m", "mine", "--json")
    assert ran.code == 1
    assert ran.err.strip().splitlines()[-1] == "Error: The ledger belongs to another model; use --overwrite."
    assert set(ran.json) == {"error", "exit_code"}
    assert engine.closed == 1


def test_ctrl_c_says_how_to_go_on(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    engine.fail = KeyboardInterrupt
    ran = run("segment", image, "-o", tmp_path / "out", "-m", "mine")
    assert ran.code == 130
    last = ran.err.strip().splitlines()[-1]
    assert str(tmp_path / "out" / "scene.job") in last
    assert "run the same command again to go on" in last
    assert engine.closed == 1
    assert "Traceback" not in ran.err


def test_disk_full_is_one_line(run: Runner, engine: Engine, image: Path, tmp_path: Path) -> None:
    engine.fail = OSError(28, "No space left on device", "out/scene.job")
    ran = run("segment", image, "-o", tmp_path / "out", "-m", "mine")
    assert ran.code == 1
    assert ran.err.strip().splitlines()[-1].startswith("Error: No space left on device (out/scene.job)")
