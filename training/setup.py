"""What a recipe asks for, made: device, network, optimiser, class weights."""

from __future__ import annotations

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from napari_isdnet_training.config import OptimizerConfig, Recipe, RunConfig
from napari_isdnet_training.registry import Network, build
from napari_isdnet_training.sampling import CropSampler
from torch import nn

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import load_model

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def make_fabric(options: RunConfig) -> Fabric:
    """Device, processes and precision of a run; :class:`InputError` where this machine has no such device."""
    processes = options.devices * options.nodes
    try:
        return Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            # Some networks have parameters that no loss reaches.
            strategy=DDPStrategy(find_unused_parameters=True) if processes > 1 else options.strategy,
            precision=PRECISION[options.precision],  # type: ignore[arg-type]
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"run.accelerator '{options.accelerator}' with {options.devices} devices cannot be had here ({reason});"
            " allowed are auto, cpu, cuda and mps, as far as the machine has them."
        ) from None


def make_network(recipe: Recipe, classes: int) -> Network:
    """The recipe's network, from its ``init`` file, from ImageNet weights or from scratch."""
    network = build(recipe.model.name, classes, recipe.model.pretrained and not recipe.model.init, recipe.model.options)
    if recipe.model.init:
        parent = load_model(recipe.model.init, training=True)
        own = network.net.state_dict()
        fitting = {k: v for k, v in parent.state_dict().items() if k in own and own[k].shape == v.shape}
        if not fitting:
            raise InputError(f"Nothing of {recipe.model.init} fits network '{recipe.model.name}'; choose its network.")
        network.net.load_state_dict({**own, **fitting})
        network.pretrained = f"model {parent.header.name if parent.header else recipe.model.init}"
    return network


def make_optimizer(network: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over groups: backbone or not, decayed or not (``scale`` multiplies the scheduled rate)."""
    backbone = network.backbone_parameters()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decayed = config.decay_norms or parameter.ndim > 1
            groups.setdefault((id(parameter) in backbone, decayed), []).append(parameter)
    listed = [
        {
            "params": parameters,
            "scale": config.backbone_lr if in_backbone else 1.0,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (in_backbone, decayed), parameters in groups.items()
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(listed, lr=config.lr)
    return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum)


def class_weights(recipe: Recipe, sampler: CropSampler, device: torch.device) -> torch.Tensor | None:
    """(K,) weights of the segmentation losses, or None."""
    choice = recipe.loss.class_weights
    if choice == "none":
        return None
    if choice == "inverse-sqrt":
        values = 1 / np.sqrt(np.maximum(sampler.frequency, 1e-4))
        return torch.tensor(values / values.mean(), dtype=torch.float32, device=device)
    if len(choice) != len(sampler.frequency):
        raise InputError(
            f"loss.class_weights has {len(choice)} numbers for the {len(sampler.frequency)} classes of the data;"
            " give one for each class."
        )
    return torch.tensor(choice, dtype=torch.float32, device=device)
