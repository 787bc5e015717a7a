"""What is not painted stays: the loss between the model before and the model that learns."""

from __future__ import annotations

import copy

import torch
from napari_isdnet_training.keeping import Keeping

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.model.isdnet import ISDNet
from tests.network_tools import lively, small

OLD = ["a", "b", "c"]


def two(names: list[str]) -> tuple[Keeping, ISDNet, torch.Tensor]:
    torch.manual_seed(0)
    before = lively(small(classes=3)).eval()
    learns = copy.deepcopy(before)
    if len(names) != 3:
        learns = lively(small(classes=len(names))).eval()
    return Keeping(before, OLD, names), learns, torch.randn(1, 3, 64, 96)


def test_the_same_model_has_no_loss_and_another_one_has() -> None:
    keeping, learns, x = two(OLD)
    nothing = torch.full((1, 64, 96), IGNORE_INDEX)
    assert float(keeping.loss(learns.coarse_logits(x), x, nothing).detach()) < 1e-6
    with torch.no_grad():
        learns.classifier.out.bias += torch.tensor([1.0, 0.0, -1.0])
    assert float(keeping.loss(learns.coarse_logits(x), x, nothing).detach()) > 0.01


def test_painted_cells_are_free() -> None:
    keeping, learns, x = two(OLD)
    with torch.no_grad():
        learns.classifier.out.bias += torch.tensor([1.0, 0.0, -1.0])
    target = torch.zeros(1, 64, 96, dtype=torch.long)
    assert float(keeping.loss(learns.coarse_logits(x), x, target).detach()) == 0
    target[:, :, 48:] = IGNORE_INDEX
    half = float(keeping.loss(learns.coarse_logits(x), x, target).detach())
    whole = learns.coarse_logits(x)
    wanted, own = keeping.before.coarse_logits(x).softmax(1), whole.log_softmax(1)
    expected = (wanted * (wanted.log() - own)).sum(1)[:, :, 6:].mean()
    assert abs(half - float(expected.detach())) < 1e-5


def test_a_new_class_is_free_to_appear_and_order_does_not_matter() -> None:
    names = ["new", "c", "a"]
    keeping, learns, x = two(names)
    learns.load_state_dict(keeping.before.state_dict())
    with torch.no_grad():  # rows as fine-tuning sets them, and the new class everywhere
        for values in (learns.classifier.out.weight, learns.classifier.out.bias):
            values[1], values[2] = values[2].clone(), values[0].clone()
        learns.classifier.out.weight[0] = 0
        learns.classifier.out.bias[0] = 50
    assert keeping.active
    assert bool((learns.coarse_logits(x).argmax(1) == 0).all())
    assert float(keeping.loss(learns.coarse_logits(x), x, torch.full((1, 64, 96), IGNORE_INDEX)).detach()) < 1e-5


def test_one_shared_class_says_nothing() -> None:
    keeping, _, _ = two(["a", "x", "y"])
    assert not keeping.active


def test_the_model_before_does_not_learn() -> None:
    keeping, learns, x = two(OLD)
    with torch.no_grad():
        learns.classifier.out.bias += torch.tensor([1.0, 0.0, -1.0])
    keeping.loss(learns.coarse_logits(x), x, torch.full((1, 64, 96), IGNORE_INDEX)).backward()
    assert all(p.grad is None for p in keeping.before.parameters())
    assert learns.classifier.out.bias.grad.abs().sum() > 0
