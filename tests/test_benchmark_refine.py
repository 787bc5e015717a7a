"""Refinements: a coarse prediction follows the image's edges afterwards; what is absent says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from napari_isdnet_training.benchmark import refine
from napari_isdnet_training.benchmark.entries import ENTRIES
from napari_isdnet_training.benchmark.inference import labelling, place
from napari_isdnet_training.benchmark.refine import REFINEMENTS, find_refinement
from napari_isdnet_training.registry import Network
from napari_isdnet_training.sources import normalised

from napari_isdnet.engine.device import choose
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD


def half_bright(side: int = 96, edge: int = 40) -> torch.Tensor:
    """An image (side, side, 3) whose columns from ``edge`` on are bright."""
    image = torch.full((side, side, 3), 40, dtype=torch.uint8)
    image[:, edge:] = 200
    return image


def as_given(image: torch.Tensor) -> torch.Tensor:
    return normalised(image.numpy().astype(np.float32), IMAGENET_MEAN, IMAGENET_STD)[None]


def blurred(side: int, centre: float, width: float) -> torch.Tensor:
    """Probabilities (2, side, side) of a border that is unsharp and off by some pixels."""
    second = torch.sigmoid((torch.arange(side).float() - centre) / width).expand(side, side)
    return torch.stack([1 - second, second])


@pytest.mark.parametrize("name", list(REFINEMENTS))
def test_a_refinement_moves_the_border_to_the_edge_of_the_image(name: str) -> None:
    reason = REFINEMENTS[name].absent()
    if reason is not None:
        pytest.skip(reason)
    x, coarse = as_given(half_bright()), blurred(96, 43.0, 6.0)
    truth = (torch.arange(96) >= 40).expand(96, 96)
    before = (coarse.argmax(0) == truth).float().mean()
    labels = find_refinement(name)(x, coarse)
    assert labels.dtype == torch.uint8
    assert labels.shape == (96, 96)
    assert (labels == truth).float().mean() > max(0.99, float(before))


@pytest.mark.parametrize("name", list(REFINEMENTS))
def test_an_absent_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"'{name}' is not available here: .*extra '{REFINEMENTS[name].extra}'"):
        find_refinement(name)
    assert "is not installed" in str(ENTRIES[f"pspnet+{name}"].absent())
    with pytest.raises(InputError, match="known are guided, densecrf"):
        find_refinement("sharpen")


def test_what_refines_sees_the_image_and_probabilities_at_full_size() -> None:
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        seen.extend((x, probabilities))
        return torch.full(x.shape[2:], 7, dtype=torch.uint8)

    placement = choose("cpu", "bfloat16")
    network = place(Network("c", torch.nn.Conv2d(3, 5, 1), None, 8), placement, True)
    x = torch.randn(1, 3, 90, 130)
    labels = labelling(network, placement, "global", True, 64, 0, spy)(x)
    assert bool((labels == 7).all())
    assert torch.equal(seen[0], x)
    assert seen[1].shape == (5, 90, 130)
    assert seen[1].dtype == torch.float32
    torch.testing.assert_close(seen[1].sum(0), torch.ones(90, 130))


def test_a_landscape_survives_being_normalised() -> None:
    image = half_bright()
    torch.testing.assert_close(refine._pixels(as_given(image)), image.float(), atol=1e-3, rtol=0)
