"""Weights rounded together: each to one of its two neighbours, never worse than the nearest, and better on pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_isdnet.engine import rounding
from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.patches import PatchReader, as_tensor
from napari_isdnet.engine.rounding import round_jointly, round_weights
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window


def cost(error: Tensor, moments: Tensor) -> Tensor:
    """Mean squared error of every row's products, one group."""
    return torch.einsum("ot,ts,os->o", error.double(), moments.double(), error.double())


def neighbours(value: float) -> set[float]:
    """The bfloat16 numbers next to ``value``: its float32 bits cut, and one further from zero."""
    bits = int(np.float32(value).view(np.uint32)) & 0xFFFF0000
    near = np.array([bits, bits + 0x10000], np.uint32).view(np.float32)
    return {float(near[0])} if float(near[0]) == value else {float(v) for v in near}


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 3), st.floats(0, 3))
def test_every_value_goes_to_a_neighbour_and_no_row_is_worse(seed: int, taps: int, groups: int, common: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4 * groups, taps, generator=generator)
    values[0, 0] = 0.0
    inputs = torch.randn(groups, taps, 64, generator=generator) + common  # what is common can cancel
    moments = inputs @ inputs.transpose(1, 2) / 64
    rounded = round_jointly(values, moments)
    for value, got in zip(values.flatten().tolist(), rounded.flatten().tolist(), strict=True):
        assert got in neighbours(value)
    for group in range(groups):
        rows = slice(4 * group, 4 * group + 4)
        ours = cost(rounded[rows] - values[rows], moments[group])
        nearest = cost(values[rows].bfloat16().float() - values[rows], moments[group])
        assert (ours <= nearest * (1 + 1e-5) + 1e-12).all()


def test_alike_inputs_make_errors_cancel() -> None:
    """Nine taps that see the same: the best of all 512 roundings, by trying them, is nearly reached."""
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    moments = torch.ones(1, 9, 9) + 0.01 * torch.eye(9)
    ours = cost(round_jointly(values, moments) - values, moments[0])
    nearest = cost(values.bfloat16().float() - values, moments[0])
    choices = [list(itertools.product(*[sorted(neighbours(v)) for v in row])) for row in values.tolist()]
    best = torch.stack([cost(torch.tensor(c) - row, moments[0]).min() for c, row in zip(choices, values, strict=True)])
    assert ours.mean() < 0.2 * nearest.mean()
    assert ours.mean() < 2 * best.mean()


@pytest.fixture(scope="module")
def model() -> ISDNet:
    return load_model("landcover-lite")


def class_maps(model: ISDNet, x: Tensor, precision: torch.dtype) -> Tensor:
    with torch.inference_mode():
        ready = prepare(model, Placement(torch.device("cpu"), precision))
        logits = ready.coarse_logits(x).float()
        return nn.functional.interpolate(logits, size=x.shape[2:], mode="bilinear")[0].argmax(0)


@pytest.mark.long
def test_class_maps_agree_better_on_a_place_that_was_not_measured(
    model: ISDNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ProceduralWorld((512, 768), seed=5)
    patch, _ = PatchReader(world, IntensityPolicy.from_source(world), model).read(Window.whole(world.shape))
    x = as_tensor(patch, torch.device("cpu"))
    exact = class_maps(model, x, torch.float32)
    together = (class_maps(model, x, torch.bfloat16) != exact).float().mean()
    monkeypatch.setattr("napari_isdnet.engine.device.round_weights", lambda *_: 0)
    nearest = (class_maps(model, x, torch.bfloat16) != exact).float().mean()
    assert together < 0.8 * nearest
    assert together < 0.008


def test_what_is_kept_stays_and_the_rest_needs_no_more_rounding() -> None:
    net = load_model("landcover-lite").eval()
    kept = {m for n, m in net.named_modules() if "_gate" in n}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count = round_weights(net, kept)
    changed = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert count > 50
    assert changed
    assert not any("_gate" in name for name in changed)
    assert all(torch.equal(v, v.bfloat16().float()) for n, v in net.state_dict().items() if n in changed)


@pytest.mark.long
def test_the_outcome_is_remembered_for_the_same_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = rounding.pictures
    monkeypatch.setattr(rounding, "pictures", lambda net: calls.append(net) or real(net))
    monkeypatch.setattr(rounding, "_last", {})
    first = ISDNet(ISDNetConfig.lite(3)).eval()
    states = []
    for _ in range(2):
        net = ISDNet(first.config).eval()
        net.load_state_dict(first.state_dict())
        round_weights(net, set())
        states.append(net.state_dict())
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    with torch.no_grad():
        first.classifier.out.bias += 1
    round_weights(first, set())
    assert len(calls) == 2


@pytest.mark.long
def test_gates_are_not_rounded_at_all(model: ISDNet) -> None:
    exact = prepare(model, Placement(torch.device("cpu"), torch.float32))
    ready = prepare(model, Placement(torch.device("cpu"), torch.bfloat16))
    assert ready.fuse8.shallow_gate.conv.weight.dtype == torch.float32
    assert torch.equal(ready.fuse8.shallow_gate.conv.weight, exact.fuse8.shallow_gate.conv.weight)
    assert ready.fuse8.smooth.conv.weight.dtype == torch.bfloat16
