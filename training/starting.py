"""The network that a fine-tuning starts from: any model, its classes matched by name, or a pretrained backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from napari_isdnet_training.presets import BACKBONE, BRANCH_SCALE, FRESH_BRANCHES
from napari_isdnet_training.registry import Network, build
from torch import Tensor, nn

from napari_isdnet.annotation.naming import Naming
from napari_isdnet.classes import ClassInfo, known_as
from napari_isdnet.exceptions import InputError, NothingToLearn
from napari_isdnet.model.checkpoint import load_model, model_hash, read_header
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader, taught_names
from napari_isdnet.model.isdnet import ISDNet, Unfilled

NEW_ROW_STD = 0.01
SILENT = 10.0
"""So far below all others starts the bias of a class that nothing teaches: it is never said."""


@dataclass(frozen=True)
class Start:
    """The network a run starts with and where it comes from.

    Attributes:
        parent, hash: header (None for a backbone) and hash of the model before.
        new_classes: painted classes that the model before does not know; they are what is learnt.
        never_taught: classes that it does not know and that are not painted either: listed, and silent.
        old: the names of the model before, as they are now, '' in place of one that it was never taught.
        names: the new classes under the names that ``old`` has for them.
    """

    network: Network
    parent: ModelHeader | None
    hash: str
    new_classes: tuple[str, ...]
    never_taught: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def knows_all(self) -> bool:
        """True when the model that it starts from knows every class that is painted."""
        return self.parent is not None and not self.new_classes


def model_classes(model: str) -> tuple[ClassInfo, ...]:
    """Classes of a model by name or file; none for the bare backbone."""
    return () if model == BACKBONE else read_header(model).classes


def start_from(
    model: str,
    classes: Sequence[ClassInfo],
    seed: int,
    painted: Collection[str] | None = None,
    naming: Naming | None = None,
) -> Start:
    """Build the network for ``classes``, of which ``painted`` (names; default: all) have labelled pixels.

    A class of the model goes on under its name, by the loose match of :func:`~napari_isdnet.classes.known_as`, wherever
    it stands in the list; where ``naming`` is of the annotation that the model was trained on, one that was renamed
    since goes on under its new name. Rows of new classes start near zero, a little below the others, so that they have
    to be learnt and disturb nothing before; one that nobody painted stays silent. Raises :class:`InputError` for fewer
    than two classes and a model without a header, and :class:`NothingToLearn` where the only painted class is the only
    one that would be known.
    """
    torch.manual_seed(seed)
    if len(classes) < 2:
        raise InputError(f"A segmentation needs at least two classes, the annotation has {len(classes)}; add one.")
    names = tuple(c.name for c in classes)
    painted = names if painted is None else painted
    if model == BACKBONE:
        options = {**FRESH_BRANCHES, "distillation": "sampled", "distillation_points": 1024}
        network = build("isdnet-lite0", len(classes), True, options)
        new, silent = _parted(names, painted)
        _refuse_single(new)
        return Start(network, None, BACKBONE, new, silent)
    parent = load_model(model, training=True)
    header = parent.header
    if header is None:
        raise InputError(f"Model '{model}' has no header; save it with its classes first.")
    old = taught_names(header)
    if naming is not None:
        called = naming.of_model(old, header.lineage)
        old = tuple(called.get(name, name) for name in old)
    known = known_as(names, old)
    unknown = [own for own, name in zip(names, known, strict=True) if name not in old]
    new, silent = _parted(unknown, painted)
    if len(unknown) == len(names):
        _refuse_single(new)
    net = parent if old == known else with_classes(parent, old, known, silent)
    return Start(Network(header.name, net, None), header, model_hash(parent), new, silent, old, known)


def _parted(names: Iterable[str], painted: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that are painted, and the others."""
    names = tuple(names)
    return tuple(n for n in names if n in painted), tuple(n for n in names if n not in painted)


def _refuse_single(painted: Sequence[str]) -> None:
    """Refuse a single painted class where nothing else is known: to say it everywhere would be right."""
    if len(painted) == 1:
        raise NothingToLearn(
            f"Only class '{painted[0]}' is painted, and the model knows none of the others: paint a second class too."
        )


def with_classes(parent: ISDNet, old: Sequence[str], new: Sequence[str], silent: Collection[str] = ()) -> ISDNet:
    """A copy of ``parent`` whose classifiers have one row per name of ``new``, taken over from ``old`` by name.

    Rows of the ``silent`` names say nothing.
    """
    with Unfilled():
        net = ISDNet(replace(parent.config, num_classes=len(new)))
    rows, state = class_rows(parent.config), parent.state_dict()
    net.load_state_dict({k: _matched(v, old, new, silent) if k in rows else v for k, v in state.items()})
    return net


def _matched(rows: Tensor, old: Sequence[str], new: Sequence[str], silent: Collection[str]) -> Tensor:
    known = [old.index(n) for n in new if n in old]
    fresh = torch.randn((len(new), *rows.shape[1:])) * NEW_ROW_STD
    if rows.ndim == 1 and known:
        fresh += rows[known].min()
    for index, name in enumerate(new):
        if name in old:
            fresh[index] = rows[old.index(name)]
        elif rows.ndim == 1 and name in silent:
            fresh[index] -= SILENT
    return fresh


@lru_cache(maxsize=16)
def class_rows(config: ISDNetConfig) -> frozenset[str]:
    """Names of the tensors that have one row per class."""
    with torch.device("meta"), Unfilled():
        one, other = (ISDNet(replace(config, num_classes=k)).state_dict() for k in (2, 3))
    return frozenset(key for key, value in one.items() if value.shape != other[key].shape)


def last_layers_only(network: Network, preset: str, start: Start) -> bool:
    """True where the last fusion and the classifier alone train; all before them is that of the model before."""
    net: Any = network.net
    return bool(preset == "quick" and start.knows_all and net.config.fuses)


def choose_what_learns(network: Network, preset: str, start: Start) -> list[nn.Module]:
    """Let the parameters of a preset learn and no others; returns the modules whose batch statistics stay as they are.

    ``quick``: of a model that knows all classes the last fusion and the classifier train; where there are new classes,
    or nothing but pretrained branches, context head, fusions and classifiers. ``thorough``: all trains. Statistics stay
    where all classes are known, and where branches do.
    """
    net: Any = network.net
    if preset == "thorough":
        return [net] if start.knows_all else []
    if last_layers_only(network, preset, start):
        net.requires_grad_(False)
        for part in (net.fuse8, net.classifier):
            part.requires_grad_(True)
        return [net]
    kept = [getattr(net, name) for name in ("backbone", "shallow") if hasattr(net, name)]
    for module in kept:
        module.requires_grad_(False)
    return kept if start.parent is None else [net]


def parameter_groups(network: Network, start: Start) -> list[dict[str, Any]]:
    """What trains, for the optimiser; ``scale`` multiplies the rate, less in branches that know what they are for."""
    net: Any = network.net
    branches = {
        id(p) for name in ("backbone", "shallow") if hasattr(net, name) for p in getattr(net, name).parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            gentle = start.knows_all or start.parent is None
            scale = BRANCH_SCALE if gentle and id(parameter) in branches else 1.0
            groups.setdefault(scale, []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def set_mode(network: Network, fixed_statistics: Sequence[nn.Module]) -> None:
    """Training mode, but for the batch norms inside of ``fixed_statistics``."""
    network.train()
    for root in fixed_statistics:
        for module in root.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
