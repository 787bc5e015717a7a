"""``isdnet-train evaluate``: the model's own normalisation and class order, and a result that is never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training import evaluate as module
from napari_isdnet_training.cli import main
from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.registry import Network

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.device import Placement, choose, prepare
from napari_isdnet.io.open import open_source
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.benchmark_tools import tiny_recipe
from tests.network_tools import picture
from tests.test_orientations import averaged, small_model

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Mean and deviation of every evaluated image; all is said to be class 0."""
    taken: list[Any] = []

    def predict(network: Any, image: Any, data: Any, count: int) -> Any:
        taken.append((data.mean, data.std) if count == 1 else count)
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(module, "predict_whole", predict)
    return taken


def run(folder: Path, names: list[str], *more: str, contrast: dict[str, Any] | None = None) -> int:
    """The exit code of an evaluation of a model with these classes; data has 'dark' and 'light'."""
    recipe = tiny_recipe(folder)
    file, model = folder / "r.toml", folder / "m.safetensors"
    data = f'layout = "scenes"\nroot = {json.dumps(str(recipe.data.root))}\ntrain = ["a"]\nvalidation = ["b"]\n'
    file.write_text(f'name = "tiny"\n[data]\n{data}classes = ["dark", "light"]\n')
    config = ISDNetConfig.lite(len(names), channels=16, auxiliary=False, super_resolution=False, distillation=None)
    header = ModelHeader(config=config, classes=classes_from(names), name="m", mean=MEAN, std=STD, contrast=contrast)
    save_model(ISDNet(config), model, header)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(model), str(file), *more])
    return int(end.value.code or 0)


def test_a_model_is_normalised_as_it_was_trained(tmp_path: Path, seen: list[Any]) -> None:
    output = tmp_path / "new" / "f.json"
    assert run(tmp_path, ["dark", "light"], "--output", str(output)) == 0
    assert seen == [(MEAN, STD)]
    assert json.loads(output.read_text())["accuracy"] == 0.5


@pytest.mark.parametrize("contrast", [None, {"asked": "0,510"}, {"channels": [2, 1, 0]}])
def test_an_image_becomes_colours_as_it_did_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrast: dict[str, Any] | None
) -> None:
    shown: list[Any] = []

    def predict(network: Any, image: Any, data: Any, count: int) -> Any:
        shown.append(image)
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(module, "predict_whole", predict)
    assert run(tmp_path, ["dark", "light"], contrast=contrast) == 0
    stored = open_source(next((tmp_path / "data").glob("b.*")))
    pixels = stored.read(Window.whole(stored.shape)).astype(np.float32)
    stored.close()
    if contrast is not None:
        pixels = pixels[..., contrast["channels"]] if "channels" in contrast else pixels / 2
    np.testing.assert_allclose(shown[0], pixels, atol=1e-3)


def test_figures_are_of_the_mean_of_orientations_where_it_is_asked_for(tmp_path: Path, seen: list[Any]) -> None:
    (tmp_path / "4").mkdir()
    (tmp_path / "3").mkdir()
    assert run(tmp_path / "4", ["dark", "light"], "--orientations", "4") == 0
    assert seen == [4]
    assert run(tmp_path / "3", ["dark", "light"], "--orientations", "3") == 2


def test_it_computes_where_and_in_what_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[tuple[str, Any]] = []

    def predict(network: Any, image: Any, data: Any, count: int) -> Any:
        weight = network.net.classifier.out.weight
        used.append((weight.device.type, weight.dtype))
        found = plain(network, image, data, count)
        assert found.shape == image.shape[:2]
        return found

    plain = module.predict_whole
    monkeypatch.setattr(module, "predict_whole", predict)
    chosen: list[str] = []
    monkeypatch.setattr("napari_isdnet.engine.device.choose", lambda *asked: chosen.extend(asked) or choose(*asked))
    monkeypatch.setattr("napari_isdnet.engine.device.has_native_bfloat16", lambda: False)
    assert run(tmp_path, ["dark", "light"], "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["device"], said["precision"]) == (choose().device.type, choose().precision)
    for name in ("more", "none"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "more", ["dark", "light"], "--device", "cpu", "--precision", "bfloat16") == 0
    assert used == [(choose().device.type, choose().dtype), ("cpu", torch.bfloat16)]
    assert chosen == ["auto", "auto", "cpu", "bfloat16"]
    assert run(tmp_path / "none", ["dark", "light"], "--device", "cuda:99") == 1
    assert "Device 'cuda:99' cannot be used here" in " ".join(capsys.readouterr().err.split())
    assert len(used) == 2


def test_half_precision_is_enlarged_in_float32() -> None:
    model, image = small_model(), picture((96, 128)).astype(np.float32)
    data = DataConfig(mean=model.header.mean, std=model.header.std)  # type: ignore[union-attr]
    ready = prepare(model, Placement(torch.device("cpu"), torch.bfloat16))
    found = module._logits(Network("m", ready, None), module.normalised(image, data.mean, data.std)[None])
    assert found.dtype == torch.float32
    assert (found.to(torch.bfloat16) != found).any()


@pytest.mark.long
def test_a_forward_of_several_orientations_is_what_segmenting_averages() -> None:
    model, image = small_model(), picture((96, 128))
    expected = averaged(model, image, 4)[0].argmax(0).numpy()
    data = DataConfig(mean=model.header.mean, std=model.header.std)  # type: ignore[union-attr]
    found = module.predict_whole(Network("m", model, None), image.astype(np.float32), data, 4)
    assert (found != expected).mean() < 1e-3
    one = module.predict_whole(Network("m", model, None), image.astype(np.float32), data)
    assert (one != expected).mean() > 1e-3


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["light", "dark"], (), "numbers its classes light, dark and the recipe dark, light"),
        (["light", "roof"], (), "numbers its classes light, roof and the recipe dark, light"),
        (["Light", "roof"], (), "numbers its classes Light, roof"),
        (["a", "b", "c"], (), "has 3 classes, the recipe 2"),
        (["dark", "light"], ("--output", "OUT"), "is a folder; name the JSON file"),
        (["dark", "light"], ("--output", "OUT/r.toml/f.json"), "is a file, not a folder"),
    ],
)
def test_what_cannot_end_well_is_said_before_the_work(
    tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str], names: list[str], more: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    assert run(tmp_path, names, *(word.replace("OUT", str(tmp_path)) for word in more)) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert seen == []


def test_other_names_are_told(tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, ["dark", "bright"]) == 0
    assert "The classes have other names (dark, bright; recipe: dark, light)" in capsys.readouterr().err
    assert len(seen) == 1


def test_figures_are_shown_even_if_they_cannot_be_written(
    tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_isdnet.io.disk.write_atomic", full)
    assert run(tmp_path, ["dark", "light"], "--output", str(tmp_path / "f.json"), "--json") != 0
    figures, error = (json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert figures["accuracy"] == 0.5
    assert "No space left" in error["error"]


def test_a_split_that_is_none_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "landcover-lite", "landcover-lite", "--split", "nope"])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(f"'{name}'" in error for name in ("nope", "train", "validation", "test"))
