"""What a recipe asks for, made: device, network, optimiser, class weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from napari_isdnet_training.config import OptimizerConfig, Recipe, RunConfig
from napari_isdnet_training.processes import environment
from napari_isdnet_training.registry import Network, build
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.starting import class_rows
from torch import nn

from napari_isdnet.classes import ClassInfo, known_as
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import one_line
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.header import taught_names
from napari_isdnet.model.isdnet import ISDNet

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def make_fabric(options: RunConfig) -> Fabric:
    """Device, processes and precision of a run; :class:`InputError` where this machine has no such device."""
    processes = options.devices * options.nodes
    where = environment(options)
    try:
        return Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            # Some networks have parameters that no loss reaches.
            strategy=DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto",
            precision=PRECISION[options.precision],  # type: ignore[arg-type]
            plugins=[where],
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise InputError(
            f"run.accelerator '{options.accelerator}' with {options.devices} devices cannot be had here"
            f" ({one_line(error, 200)});"
            " allowed are auto, cpu, cuda and mps, as far as the machine has them."
        ) from None


def make_network(recipe: Recipe, classes: Sequence[ClassInfo]) -> Network:
    """The recipe's network, from its ``init`` file, from ImageNet weights or from scratch.

    :attr:`Network.pretrained` says where it starts and what of an ``init`` file was left out. Raises
    :class:`InputError` where that is a model of another network.
    """
    model = recipe.model
    network = build(model.name, len(classes), model.pretrained and not model.init, model.options)
    if model.init:
        _start_from(network, model.init, [c.name for c in classes])
    return network


def _start_from(network: Network, init: str, names: Sequence[str]) -> None:
    """Put the tensors of a model file into a network: all of its branches, and of the rest what fits.

    Rows of the classifiers go by class name: another order, or one class more, is no other network.
    """
    parent = load_model(init, training=True)
    own, given = network.net.state_dict(), parent.state_dict()
    branches = [key for key in own if key.startswith(("backbone.", "shallow."))]
    fitting = {key for key in own if key in given and given[key].shape == own[key].shape}
    if not isinstance(network.net, ISDNet) or not fitting.issuperset(branches):
        fit = f" ({len(fitting.intersection(branches))} of {len(branches)} branch tensors fit)" if branches else ""
        raise InputError(
            f"Model '{init}' is of another network than the recipe's '{network.name}'{fit}; choose model.name and"
            " model.options of that model, or leave model.init out."
        )
    old = taught_names(parent.header) if parent.header else ()
    known, rows = known_as(names, old), class_rows(network.net.config)
    left = {key.split(".")[0] for key in own if key not in fitting and key not in rows}
    for key, value in own.items():
        if key not in rows:
            value.copy_(given[key] if key in fitting else value)
        elif key in given and given[key].shape[1:] == value.shape[1:]:
            for row, name in enumerate(known):
                if name in old:
                    value[row] = given[key][old.index(name)]
        else:
            left.add(key.split(".")[0])
    network.net.load_state_dict(own)
    fresh = [f"class '{own}'" for own, name in zip(names, known, strict=True) if name not in old] + sorted(left)
    said = f" (new are {', '.join(fresh)})" if fresh else ""
    network.pretrained = f"model {parent.header.name if parent.header else init}{said}"


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
        values, present = 1 / np.sqrt(np.maximum(sampler.frequency, 1e-4)), sampler.frequency > 0
        # The weight of a class that is nowhere would be the largest by far, and make those of all others small.
        weights = np.where(present, values / values[present].mean(), 1.0)
        return torch.tensor(weights, dtype=torch.float32, device=device)
    if len(choice) != len(sampler.frequency):
        raise InputError(
            f"loss.class_weights has {len(choice)} numbers for the {len(sampler.frequency)} classes of the data;"
            " give one for each class."
        )
    return torch.tensor(choice, dtype=torch.float32, device=device)
