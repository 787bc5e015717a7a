"""Baselines of OpenMMLab's library: built, trained and left out in a way that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from napari_isdnet_training import mmseg, registry
from napari_isdnet_training.benchmark.entries import find_entry
from napari_isdnet_training.benchmark.table import table
from napari_isdnet_training.norms import prepare_norms
from napari_isdnet_training.registry import REGISTRY, available, build, check_available

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError, MissingExtra
from tests.benchmark_tools import drain, tiny_recipe

installed = pytest.mark.skipif(mmseg.missing() is not None, reason="the extra 'baselines' is not installed")
TRAINABLE = ("stdc1", "bisenetv2")


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = lambda: "mmseg is not installed"  # noqa: E731
    monkeypatch.setattr(mmseg, "missing", gone)
    monkeypatch.setattr(registry, "missing", gone)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_missing_library_is_said_in_one_sentence(name: str, without_library: None) -> None:
    for call in (lambda: build(name, 3), lambda: check_available(["unet", name])):
        with pytest.raises(MissingExtra, match=rf"'{name}' needs onedl-mmsegmentation.*napari-isdnet\[baselines\]"):
            call()
    assert name in REGISTRY
    assert available() == [n for n in REGISTRY if n not in TRAINABLE]


def test_the_table_says_so_before_it_trains_anything(without_library: None, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra):
        drain(table(tiny_recipe(tmp_path), tmp_path / "t.csv", ["isdnet-lite0", "stdc1"], 1, 1, None, []))
    assert not (tmp_path / "t.csv").exists()


@installed
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("stdc1", {"auxiliary_1", "auxiliary_2", "detail"}),
        ("bisenetv2", {f"auxiliary_{n}" for n in range(1, 5)}),
    ],
)
def test_every_head_learns_and_ignored_pixels_teach_no_class(name: str, heads: set[str]) -> None:
    torch.manual_seed(0)
    network = build(name, 3)
    assert network.pretrained is None
    assert network.backbone_parameters() == set()
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(2, 96, 128, dtype=torch.long)
    target[:, :, 64:] = 2
    losses = network.losses(x, target)
    assert losses.keys() == {"seg", "total"} | heads
    torch.testing.assert_close(losses["total"], sum(v for k, v in losses.items() if k != "total"))
    losses["total"].backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    weighted = network.losses(x, target, torch.tensor([1.0, 1.0, 0.0]))
    assert not torch.equal(weighted["seg"], network.losses(x, target)["seg"])
    network.zero_grad()
    nothing = network.losses(x, torch.full_like(target, IGNORE_INDEX))
    sum(v for k, v in nothing.items() if k not in ("total", "detail")).backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@installed
@pytest.mark.parametrize("name", TRAINABLE)
def test_any_size_a_batch_of_one_and_no_training_heads_to_infer(name: str) -> None:
    network = build(name, 3)
    prepare_norms(network, 1, False)
    x = torch.randn(1, 3, 70, 101)
    assert torch.isfinite(network.losses(x, torch.ones(1, 70, 101, dtype=torch.long))["total"])
    assert network.eval().logits(x).shape == (1, 3, 70, 101)
    plain = find_entry(f"registry:{name}").make(3)
    full, bare = (sum(p.numel() for p in n.parameters()) for n in (network, plain))
    assert bare < full
    with pytest.raises(InputError, match="cannot be built with options"):
        build(name, 3, options={"channels": 3})


@installed
def test_a_row_of_the_table(tmp_path: Path) -> None:
    rows = drain(table(tiny_recipe(tmp_path), tmp_path / "t.csv", ["bisenetv2"], 2, 1, None, []))
    assert rows[1]["network"] == "bisenetv2"
    assert rows[1]["backbone"] == "scratch"
    assert 0 <= float(rows[1]["miou"]) <= 1
