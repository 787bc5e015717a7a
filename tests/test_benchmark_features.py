"""What frozen features know: the probe against features that say everything and nothing, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from napari_isdnet_training.benchmark import features as probing
from napari_isdnet_training.benchmark.features import ALL, features, probe
from napari_isdnet_training.config import recipe_from

from napari_isdnet.exceptions import InputError
from tests.test_train_fit import drain, make_data


@pytest.mark.long
def test_features_that_say_the_class_are_found_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (3000,), generator=generator)
    telling = torch.nn.functional.one_hot(truth, 3).float() * 40 + 7
    noise = torch.randn(3000, 3, generator=generator)
    unknown = torch.where(torch.arange(3000) % 5 == 0, 255, truth)
    own, other = probe(telling[:2000], unknown[:2000], telling[2000:], truth[2000:], 3, seed=0)
    assert own.mean_iou == other.mean_iou == 1
    assert own.counts.sum() == 1600
    _, blind = probe(noise[:2000], truth[:2000], noise[2000:], truth[2000:], 3, seed=0)
    assert blind.mean_iou < 0.35


@pytest.mark.parametrize("side", [64, 90, 100, 127])
def test_features_lie_where_their_classes_do_whatever_the_size(side: int) -> None:
    """A 'backbone' whose features say where in the image they are, at strides of 8 and 32."""

    class Place(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.avg_pool2d(x, stride, ceil_mode=True) for stride in (8, 32)]

    ramp = torch.arange(side, dtype=torch.float32)
    images = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side), torch.zeros(side, side)])[None]
    labels = torch.arange(side)[8::16][None, :, None].expand(1, -1, len(range(8, side, 16)))
    drawn = probing._cut((images, labels), 32)
    maps, rows = probing._features(Place(), drawn, 1)
    assert len(rows) >= 16
    for found in maps:
        inner = (rows >= 16) & (rows < side // 32 * 32 - 16)  # at the border there is nothing to interpolate with
        assert (found[inner, 0] - rows[inner]).abs().max() <= 0.51


def test_the_table_has_every_stage_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "STEPS", 3)
    data = {"root": str(make_data(tmp_path / "data")), "classes": ["red", "green"], "train": ["a[!0]"]}
    recipe = recipe_from({"name": "tiny", "data": {**data, "validation": ["a0"]}, "crop": {"size": [64, 64]}})
    output = tmp_path / "features.csv"

    def run(*downscales: int):
        return drain(features(recipe, "tf_efficientnet_lite0", output, downscales, 3, 1, ["a note"], pretrained=False))

    _, rows = run(2)
    assert [row["stage"] for row in rows] == ["0", "1", "2", "3", "4", ALL]
    assert [row["stride"] for row in rows] == ["4", "8", "16", "32", "64", ""]
    assert [row["channels"] for row in rows] == ["16", "24", "40", "112", "320", "512"]
    assert all(0 <= float(row["miou"]) <= 1 for row in rows)
    _, again = run(2, 4)
    assert again[:6] == rows
    assert len(again) == 12
    with pytest.raises(InputError, match="no backbone 'resnet'"):
        next(features(recipe, "resnet", output, (2,), 3, 1, []))
    alone = recipe_from({"name": "tiny", "data": data, "crop": {"size": [64, 64]}})
    with pytest.raises(InputError, match="validation"):
        next(features(alone, "tf_efficientnet_lite0", output, (2,), 3, 1, []))
