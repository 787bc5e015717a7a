"""``isdnet-train finetune`` as a user meets it: what it refuses, in words of its own options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari_isdnet_training.cli import main
from napari_isdnet_training.options import FineTuneResult
from PIL import Image

from napari_isdnet.classes import classes_from
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet

SIDE = 96
ANNOTATION = ("--values", "annotation")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ISDNetConfig.lite(2, channels=16, distillation="sampled", distillation_points=64)
    header = ModelHeader.default(config, classes=classes_from(("red", "green")), name="bare", window=128)
    return save_model(ISDNet(config), tmp_path_factory.mktemp("model") / "bare.safetensors", header, half=False)


def shape(name: str | None) -> dict[str, Any]:
    ring = [[10, 10], [70, 10], [70, 70], [10, 70], [10, 10]]
    properties = {} if name is None else {"classification": {"name": name}}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def labels_file(path: Path, *values: int) -> Path:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values):
        labels[number] = value
    Image.fromarray(labels).save(path)
    return path


def shapes_file(path: Path, *names: str | None) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [shape(name) for name in names]}))
    return path


@pytest.mark.parametrize(
    ("make", "name", "content", "more", "message"),
    [
        (labels_file, "empty.png", (), (), "empty.png holds no painted pixel; annotate"),
        (labels_file, "ignored.png", (255,) * SIDE, ("--values", "mask"), "ignored.png holds no painted pixel"),
        (labels_file, "mask.png", (1, 255), ANNOTATION, "mask.png holds 255, which marks ignored pixels of a mask of"),
        (labels_file, "mask.png", (1, 255), ANNOTATION, "; add --values mask, or replace 255 by 0."),
        (labels_file, "bad.png", (1, 77), (), "bad.png holds the value 77; with 2 classes and --values annotation 0"),
        (labels_file, "bad.png", (1, 77), (), "0 to 2 are allowed: name every class with --classes FILE, or correct"),
        (labels_file, "bad.png", (0, 2, 255), ("--values", "mask"), "--values mask 0 to 1 are allowed"),
        (labels_file, "half.png", (1,) * 60, (), "half.png has neither class names nor 255, so that its 0 may be"),
        (labels_file, "bad.png", (255, 77), (), "with 2 classes and --values mask 0 to 1 are allowed: name every"),
        (shapes_file, "none.geojson", (), (), "none.geojson holds no shape; draw"),
        (shapes_file, "some.geojson", ("red", None), (), "some.geojson, shape 1 has no class; set its classification"),
    ],
)  # fmt: skip
def test_the_command_names_the_users_file_and_its_own_options(
    scene: Path, model: Path, tmp_path: Path, capsys: Any,
    make: Any, name: str, content: tuple[Any, ...], more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    path = make(tmp_path / name, *content)
    with pytest.raises(SystemExit) as done:
        main(["finetune", str(scene), str(path), "-o", str(tmp_path / "m.safetensors"), "-m", str(model), *more])
    assert done.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"Error: {path}")
    assert message in error
    assert "values=" not in error
    assert "default class" not in error


@pytest.mark.parametrize(("option", "allowed"), [("--device", "auto, cpu, cuda"), ("--precision", "bfloat16")])
def test_the_command_refuses_a_device_and_precision_as_segment_does(capsys: Any, option: str, allowed: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(["finetune", "a.tif", "b.tif", "-o", "m.safetensors", option, "foo"])
    assert done.value.code == 2
    error = capsys.readouterr().err.strip()
    assert option in error
    assert allowed in error


def test_the_command_says_once_why_no_model_was_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = FineTuneResult(None, 5, 0, {"miou": 0.5}, {}, (), "the held-out regions got no better")

    def stub(*_: Any, **__: Any) -> Any:
        yield from ()
        return result

    monkeypatch.setattr("napari_isdnet_training.finetune.finetune", stub)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as done:
            main(["finetune", "a.tif", "b.tif", "-o", str(tmp_path / "m.safetensors"), *more])
        assert done.value.code == 1
        ran = capsys.readouterr()
        assert ran.err == "Error: No model was written: the held-out regions got no better (--allow-worse).\n"
        if more:
            facts = json.loads(ran.out)
            assert facts["reason"] == result.reason
            assert (ran.err, facts["exit_code"]) == (f"Error: {facts['error']}\n", 1)
        else:
            assert ran.out == "steps: 5\nbest step: 0\nheld out before:\n  miou: 0.5\n"
