"""Networks that cannot be streamed: run in one piece where the image fits, refused in one sentence else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_isdnet.engine import job
from napari_isdnet.engine.device import Placement, working_bytes
from napari_isdnet.engine.oneshot import OneShot, bytes_per_pixel
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.segment import segment
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
PLAIN: dict[str, Any] = {"device": "cpu", "precision": "float32"}
CONFIGS: dict[str, ISDNetConfig] = {
    "squeeze-and-excite": small(deep="mobilenetv3_small_050", classes=3, channels=16),
    "deep alone": small(branches="deep", classes=3, channels=16),
    "shallow alone": small(branches="shallow", classes=3, channels=16),
}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_result_is_the_forward_of_the_whole_image(name: str, tmp_path: Path) -> None:
    model, image = lively(CONFIGS[name]), picture((130, 171))
    result = result_of(segment(source_of(image), model, output=tmp_path, **PLAIN))
    assert result.context == "whole"
    store = LabelStore.open(result.outputs["labels"])
    patch = PatchReader(source_of(image), policy_of(image), model).read(Window.whole((130, 171)))[0]
    with torch.no_grad():
        logits = model(torch.from_numpy(patch).permute(2, 0, 1)[None]).logits[0]
    best = logits.topk(2, dim=0).values
    sure = ((best[0] - best[1]) > 2e-3 * logits.std()).numpy()
    assert sure.mean() > 0.9
    found = store.read_labels(Window.whole(store.shape))
    assert (found == logits.argmax(0).numpy())[sure].all()
    region = Window(20, 31, 77, 90)
    part = result_of(segment(source_of(image), model, output=tmp_path / "part", roi=region, **PLAIN))
    cut = LabelStore.open(part.outputs["labels"])
    np.testing.assert_array_equal(cut.read_labels(Window.whole(cut.shape)), found[region.slices])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("squeeze-and-excite", "The backbone 'mobilenetv3_small_050' looks at its whole input"),
        ("deep alone", "A network of the deep branch alone is not streamed"),
    ],
)
def test_where_it_does_not_fit_it_is_one_sentence_and_nothing_is_written(name: str, cause: str, tmp_path: Path) -> None:
    side = int((working_bytes(1) / bytes_per_pixel(CONFIGS[name])) ** 0.5) + 40
    image = np.zeros((side, side, 3), np.uint8)
    with pytest.raises(InputError) as caught:
        result_of(segment(source_of(image), lively(CONFIGS[name]), output=tmp_path / "o", memory=1, **PLAIN))
    message = str(caught.value)
    assert cause in message
    assert f"{side} x {side}" in message
    assert "where --memory leaves 0.22 GiB beside the network; use --context window or a larger --memory." in message
    assert "\n" not in message
    assert not list((tmp_path / "o").glob("picture.ome*"))


@pytest.mark.long
def test_in_windows_they_always_run(tmp_path: Path) -> None:
    image = picture((200, 333))
    result = result_of(
        segment(source_of(image), lively(CONFIGS["squeeze-and-excite"]), output=tmp_path, context="window", **PLAIN)
    )
    assert result.class_pixels["nodata"] == 0


def test_a_network_that_can_be_streamed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(small(classes=3, channels=16)), picture((64, 64))
    made = job.make_predictor(model, source_of(image), policy_of(image), CPU)
    assert not isinstance(made, OneShot)
    with pytest.raises(InputError, match="context must be whole or window, got 'tiles'"):
        job.make_predictor(model, source_of(image), policy_of(image), CPU, context="tiles")  # type: ignore[arg-type]
