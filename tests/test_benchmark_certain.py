"""What skipping certain squares costs: which are skipped, what is mixed, what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from napari_isdnet_training.benchmark.certain import CERTAIN_COLUMNS, certainty, measure_certain, most_certain
from napari_isdnet_training.benchmark.loop import Scene
from napari_isdnet_training.cli import main

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from tests.benchmark_tools import CLASSES, drain, scene


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    net = ISDNet(ISDNetConfig.lite(2, channels=16).inference())
    header = ModelHeader(config=net.config, classes=classes_from(CLASSES), name="m", window=64)
    save_model(net, tmp_path / "m.safetensors", header, half=False)
    return str(tmp_path / "m.safetensors")


def test_a_small_uncertain_object_keeps_its_square_and_cut_squares_are_never_skipped() -> None:
    sure = np.full((70, 100), 0.9, np.float32)
    sure[:32, 32:64] = 0.99
    sure[40:60, 40:56] = 0.4  # a third of its square
    order = certainty(sure, 32)
    np.testing.assert_allclose(order, [[0.9, 0.99, 0.9], [0.9, 0.4, 0.9]])
    mask = most_certain(order, 1 / 6, 32, (70, 100))
    assert mask[:32, 32:64].all()
    assert mask.sum() == 32 * 32
    mask = most_certain(order, 5 / 6, 32, (70, 100))
    assert not mask[32:64, 32:64].any()
    assert not mask[64:].any()
    assert not mask[:, 96:].any()
    assert mask.sum() == 5 * 32 * 32


def test_the_row_is_that_of_the_mixed_map(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = scene(tmp_path, "s", (128, 128), 2)  # light above, dark below

    def probabilities(found: Scene, name: str, downscale: int = 1) -> torch.Tensor:
        light = torch.zeros(128, 128)
        light[:64] = 0.8
        if downscale > 1:
            light = 1 - light  # wrong everywhere, and sure of it below
        return torch.stack([1 - light, light])

    monkeypatch.setattr(Scene, "probabilities", probabilities)
    (row,) = drain(measure_certain(image, mask, model, downscales=(4,), shares=(25,), cells=(64,)))
    assert (row["miou_full"], row["miou_coarse"]) == (1, 0)
    assert (row["skipped_percent"], row["work"], row["agreement_skipped"]) == (25, 1 / 16 + 0.75, 0)
    assert row["miou"] == pytest.approx((64 / 96 + 1 / 2) / 2, abs=1e-5)  # a quarter of the pixels is wrong, below


def test_on_the_command_line(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = scene(tmp_path, "s", (256, 320), 2)
    output = tmp_path / "certain.csv"
    with pytest.raises(SystemExit, match="0"):
        main([
            "benchmark", "certain", str(image), str(mask), "--model", model, "--skip", "50", "--device", "cpu",
            "--output", str(output), "--json",
        ])  # fmt: skip
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["downscale"], row["cell"]) for row in rows] == [(2, 64), (2, 256), (4, 64), (4, 256)]
    assert rows[0]["skipped_percent"] == 50
    assert rows[1]["skipped_percent"] == 0  # half of one square is none
    assert rows[1]["miou"] == rows[1]["miou_full"]
    assert ",".join(CERTAIN_COLUMNS) in output.read_text()


def test_what_cannot_be_measured_is_said(tmp_path: Path, model: str) -> None:
    image, mask = scene(tmp_path, "s", (96, 128), 2)
    with pytest.raises(InputError, match="Squares of 256 do not fit an image of 96 x 128"):
        next(measure_certain(image, mask, model))
    with pytest.raises(InputError, match="above 0 and below 100 percent, got 100"):
        next(measure_certain(image, mask, model, shares=(100,), cells=(32,)))
