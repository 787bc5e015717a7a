"""Feature maps, attention and one-branch answers against the one-shot forward of the same network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_isdnet.engine.device import Placement
from napari_isdnet.engine.features import FeatureView
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
TINY = {"channels": 16}
NETWORKS = {
    "reference": small(**TINY),
    "paper": small("paper", **TINY),
    "lite": small(deep="tf_efficientnet_lite0", deep_filter="lowpass", **TINY),
    "cat": small(deep_head="pspnet", fusion="cat_ca", classes=2, **TINY),
    "cheap": small(fusion="add", deep_stride=16, shallow_input="rgb", downscale=2, **TINY),
}


def view_of(model: ISDNet, image: np.ndarray, context: str = "whole", **options: object) -> FeatureView:
    view = FeatureView(source_of(image), model, policy_of(image), CPU, context, exact=True, **options)  # type: ignore[arg-type]
    for _ in view.prepare():
        pass
    assert view.prepared
    return view


@torch.inference_mode()
def one_shot(model: ISDNet, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every map of one forward pass, (h, w, C) each, attention as it is."""
    reader = PatchReader(source_of(image), policy_of(image), model)
    x = torch.from_numpy(reader.read(Window.whole(image.shape[:2]))[0]).permute(2, 0, 1)[None]
    maps = dict(model(x, features=True).features or {})
    residuals = maps.pop("residuals")
    if model.config.shallow_input != "rgb":
        maps |= {f"H{i}": residuals[:, 3 * i : 3 * i + 3] for i in range(residuals.shape[1] // 3)}
    maps["super_resolution"] = model.super_resolution(maps["deep"])[1]
    for name, branch in (("logits", "both"), ("logits_shallow", "shallow"), ("logits_deep", "deep")):
        maps[name] = model.coarse_logits(x, branch)
        maps["full_" + name] = model(x, branch=branch).logits
    return {
        name: value[0].permute(1, 2, 0).numpy() if value.ndim == 4 else value[0].numpy() for name, value in maps.items()
    }


def assert_equal(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert got.shape == expected.shape, what
    assert np.abs(got - expected).max() <= 1e-3 * expected.std() + 1e-6, what


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_context_equals_one_forward(name: str) -> None:
    model, image = lively(NETWORKS[name]), picture((331, 485))
    expected = one_shot(model, image)
    view = view_of(model, image, window=128)
    assert set(view.names) == {n for n, v in expected.items() if v.ndim == 3 and not n.startswith("full_")}
    for layer in view.names:
        whole = expected[layer]
        info = view.info(layer)
        assert (*info.extent.shape, info.channels) == whole.shape, layer
        rows, columns = info.extent.shape
        for window in (Window.whole(info.extent.shape), Window(rows // 3, columns // 2, rows // 4, columns // 3)):
            assert_equal(view.read(layer, window), whole[window.slices], layer)
    attention = view.attention()
    assert set(attention) == {n for n in expected if n[:2] in ("M_", "R1", "R8")}
    for key, value in attention.items():
        assert_equal(value, expected[key], key)
    for branch, key in (("both", "full_logits"), ("shallow", "full_logits_shallow"), ("deep", "full_logits_deep")):
        window = Window(101, 203, 97, 111)
        got = view.logits(window, branch)[0].permute(1, 2, 0).numpy()  # type: ignore[arg-type]
        assert_equal(got, expected[key][window.slices], key)
    view.close()
