"""Fine-tuning that meets numbers that are not finite stops, and its checkpoint stays good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from napari_isdnet_training.finetune import checkpoint_folder, finetune
from napari_isdnet_training.strokecrops import StrokeCrops
from napari_isdnet_training.unfinished import STATE
from safetensors.torch import load_file

from napari_isdnet.annotation.project import Project
from napari_isdnet.exceptions import InputError
from tests import finetune_tools as tools

pytestmark = pytest.mark.long  # each trains, or runs a network several times


def broken_images(patch: pytest.MonkeyPatch) -> None:
    """The forward of step 1 spoils loss and batch statistics."""
    usual = StrokeCrops.batch

    def batch(self: StrokeCrops, step: int, size: int) -> Any:
        image, target = usual(self, step, size)
        return image * (float("nan") if step == 1 else 1.0), target

    patch.setattr(StrokeCrops, "batch", batch)


def broken_gradients(patch: pytest.MonkeyPatch) -> None:
    """The loss of step 1 is finite and one of its gradients is not, as from a kernel at fault."""
    usual, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(parameters: list[torch.nn.Parameter], limit: float) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            next(p.grad for p in parameters if p.grad is not None).view(-1)[0] = float("inf")
        return usual(parameters, limit)

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


@pytest.mark.parametrize(("spoil", "what"), [(broken_images, "loss is nan"), (broken_gradients, "gradient is inf")])
def test_numbers_that_are_not_finite_stop_a_run_that_can_go_on_later(
    spoil: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, model = tools.scene(tmp_path / "scene.png"), tools.network(tmp_path / "bare.safetensors")
    with Project.open(picture, ("red", "other"), folder=tmp_path / "p.isdnet") as project:
        tools.paint(project.store)
    output = tmp_path / "m.safetensors"
    options: dict[str, Any] = {**tools.TINY, "steps": 3, "preset": "thorough", "held_out": 0.0, "device": "cpu"}
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(InputError, match=f"The {what} at step 1: training diverged"):
            list(finetune(picture, tmp_path / "p.isdnet", str(model), output=output, **options))
    stored = load_file(checkpoint_folder(output) / STATE)
    assert all(bool(torch.isfinite(value).all()) for value in stored.values())
    shown = list(finetune(picture, tmp_path / "p.isdnet", str(model), output=output, **options))
    assert [p.done for p in shown if p.stage == "train"] == [2, 3]
    assert all(bool(torch.isfinite(value).all()) for value in load_file(output).values())
