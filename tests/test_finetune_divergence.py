"""Fine-tuning that meets numbers that are not finite, or too little memory, stops; its checkpoint stays good."""

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
from napari_isdnet.model.isdnet import ISDNet
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


def little_memory(patch: pytest.MonkeyPatch) -> None:
    """The forward of step 1 asks for more than any machine has."""
    usual, calls = ISDNet.losses, []

    def losses(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            torch.empty(1 << 50)
        return usual(*given, **more)

    patch.setattr(ISDNet, "losses", losses)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken_images, "The loss is nan at step 1: training diverged"),
        (broken_gradients, "The gradient is inf at step 1: training diverged"),
        (little_memory, "^The device has too little memory for a step with 1 windows; .*smaller --batch or --window"),
    ],
)
def test_what_stops_a_step_stops_a_run_that_can_go_on_later(
    spoil: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, model = tools.scene(tmp_path / "scene.png"), tools.network(tmp_path / "bare.safetensors")
    with Project.open(picture, ("red", "other"), folder=tmp_path / "p.isdnet") as project:
        tools.paint(project.store)
    output = tmp_path / "m.safetensors"
    options: dict[str, Any] = {**tools.TINY, "steps": 3, "preset": "thorough", "held_out": 0.0, "device": "cpu"}
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(InputError, match=said):
            list(finetune(picture, tmp_path / "p.isdnet", str(model), output=output, **options))
    stored = load_file(checkpoint_folder(output) / STATE)
    assert all(bool(torch.isfinite(value).all()) for value in stored.values())
    shown = list(finetune(picture, tmp_path / "p.isdnet", str(model), output=output, **options))
    assert [p.done for p in shown if p.stage == "train"] == [2, 3]
    assert all(bool(torch.isfinite(value).all()) for value in load_file(output).values())
