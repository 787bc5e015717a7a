"""What the speed benchmark runs: this network in its forms, baselines of well-kept libraries, and refinements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from napari_isdnet_training.benchmark.refine import REFINEMENTS
from napari_isdnet_training.mmseg import MMSEG, build_mmseg, missing
from napari_isdnet_training.registry import REGISTRY, Network, build

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet

MODES = ("whole", "half", "quarter", "local", "global")
"""``whole``: one forward over the image; ``half``, ``quarter``: over the image at 1/2 or 1/4, result enlarged;
``local``: tiles at full resolution; ``global``: the image shrunk so that its longer side is one tile."""

GENERIC = ("whole", "local", "global")
SCALED = ("whole", "half", "quarter", "local", "global")


@dataclass(frozen=True)
class SpeedEntry:
    """One network of the speed benchmark, the modes that make sense for it, and what refines its prediction.

    ``absent`` says why it cannot be measured here.
    """

    name: str
    description: str
    modes: tuple[str, ...]
    make: Callable[[int], Network]
    refinement: str | None = None
    absent: Callable[[], str | None] = lambda: None


def _ours(name: str, description: str, config: Callable[[int], ISDNetConfig]) -> SpeedEntry:
    return SpeedEntry(name, description, ("whole",), lambda k: Network(name, ISDNet(config(k).inference()), None))


def _registry(name: str, description: str, modes: tuple[str, ...]) -> SpeedEntry:
    return SpeedEntry(name, description, modes, lambda k: build(name, k, pretrained=False))


def _mmseg(name: str) -> SpeedEntry:
    modes = SCALED if name.startswith("pspnet") else GENERIC
    model = MMSEG[name]
    return SpeedEntry(
        name, model.description, modes, lambda k: Network(name, build_mmseg(name, k), None, model.multiple),
        absent=missing,
    )  # fmt: skip


def _refined(base: SpeedEntry, refinement: str) -> SpeedEntry:
    """A coarse prediction from the shrunk image, refined at full size."""
    found = REFINEMENTS[refinement]
    name, text = f"{base.name}+{refinement}", f"{base.description}, refined by {found.description}"
    return SpeedEntry(name, text, ("global",), base.make, refinement, found.absent)


def _entries() -> dict[str, SpeedEntry]:
    of = ISDNetConfig.of
    ours = [
        _ours("isdnet-reference-r18", "ISDNet as published, ResNet18", lambda k: of("reference", k)),
        _ours("isdnet-reference-r50", "ISDNet as published, ResNet50", lambda k: of("reference", k, deep="resnet50")),
        _ours("isdnet-paper-r18", "ISDNet as written in the paper, ResNet18", lambda k: of("paper", k)),
        _ours("isdnet-lite", "ISDNet for CPUs, EfficientNet-Lite0", ISDNetConfig.lite),
        _ours("isdnet-pspnet-r18", "ISDNet, PSPNet as deep head", lambda k: of("reference", k, deep_head="pspnet")),
        _ours(
            "isdnet-segformer-r18", "ISDNet, SegFormer's decoder as deep head",
            lambda k: of("reference", k, deep_head="segformer"),
        ),
        _ours("isdnet-stride16", "ISDNet, deep branch at stride 16", lambda k: of("reference", k, deep_stride=16)),
        _ours("isdnet-1x1", "ISDNet, 1x1 on the shallow features", lambda k: of("reference", k, shallow_kernel=1)),
        _ours("isdnet-context1st", "ISDNet, early context", lambda k: of("reference", k, context_first=True)),
    ]  # fmt: skip
    shared = [
        _registry("unet", "UNet, EfficientNet-Lite0", GENERIC),
        _registry("deeplabv3plus", "DeepLabv3+, EfficientNet-Lite0", GENERIC),
        _registry("pspnet", "PSPNet, EfficientNet-Lite0", SCALED),
        _registry("segformer-b0", "SegFormer-B0", SCALED),
    ]
    coarse = next(e for e in shared if e.name == "pspnet")
    refined = [_refined(coarse, name) for name in REFINEMENTS]
    return {e.name: e for e in [*ours, *shared, *(_mmseg(name) for name in MMSEG), *refined]}


ENTRIES = _entries()


def choose_entries(names: list[str] | None) -> list[SpeedEntry]:
    """Entries by name, all of them by default; InputError names what is known."""
    for name in names or ():
        if name not in ENTRIES:
            raise InputError(f"There is no network '{name}' to measure; known are {', '.join(ENTRIES)}.")
    return [ENTRIES[name] for name in names or ENTRIES]


def find_entry(name: str, options: Mapping[str, Any] | None = None) -> SpeedEntry:
    """An entry by name; ``registry:NAME`` is a network of the registry, with options, without training-only parts."""
    if not name.startswith("registry:"):
        return choose_entries([name])[0]
    plain = name.removeprefix("registry:")

    def make(num_classes: int) -> Network:
        extra = REGISTRY[plain].inference if plain in REGISTRY else {}
        return build(plain, num_classes, False, {**(options or {}), **extra})

    return SpeedEntry(plain, plain, GENERIC, make)
