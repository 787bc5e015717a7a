"""One registry of networks for training and benchmarks: ISDNet's configurations and baselines of well-kept libraries.

Every entry gives a :class:`Network`: ``logits(x)`` at the size of ``x``, and ``losses(x, target, weight)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from napari_isdnet_training.attention import fuse_attention
from napari_isdnet_training.mmseg import MMSEG, MMSeg, build_mmseg, missing, require
from torch import Tensor, nn

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.model.auxiliary import segmentation_loss
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.deep import copy_from_pypi, load_pretrained
from napari_isdnet.model.isdnet import MIN_SIDE, ISDNet
from napari_isdnet.model.shallow import ShallowBranch, TimmShallow

LITE0 = "tu-tf_efficientnet_lite0"


class Network(nn.Module):
    """A network with one interface. ``pretrained`` says where its backbone's weights come from, None for scratch."""

    def __init__(self, name: str, net: nn.Module, pretrained: str | None, multiple: int = 1) -> None:
        super().__init__()
        self.name, self.net, self.pretrained, self.multiple = name, net, pretrained, multiple

    def logits(self, x: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size to logits (B, K, H, W)."""
        ours, (height, width) = isinstance(self.net, ISDNet), x.shape[-2:]
        down, right = (max(0, MIN_SIDE - s) if ours else -s % self.multiple for s in (height, width))
        padded = F.pad(x, (0, right, 0, down)) if down or right else x
        values = self.net(padded).logits if ours else self.net(padded)
        if values.shape[-2:] != padded.shape[-2:]:
            values = F.interpolate(values, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return values[..., :height, :width]

    def losses(
        self, x: Tensor, target: Tensor, weight: Tensor | None = None, count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every training loss by name and ``total``, their sum; ``target`` (B, H, W) with 255 ignored.

        ``count``: labelled pixels (by weight) of the mean part of a batch, for losses that are means over these; others
        are means over all pixels, whose mean over parts is that of the batch anyway.
        """
        if isinstance(self.net, ISDNet):
            return self.net.losses(x, target, weight, count)
        if isinstance(self.net, MMSeg):
            down, right = (-side % self.multiple for side in x.shape[-2:])
            if down or right:
                x, target = F.pad(x, (0, right, 0, down)), F.pad(target, (0, right, 0, down), value=IGNORE_INDEX)
            return self.net.losses(x, target, weight)
        seg = segmentation_loss(self.logits(x), target, weight, over_all=True)
        return {"seg": seg, "total": seg}

    def forward(
        self, x: Tensor, target: Tensor, weight: Tensor | None = None, count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses: what a distributed wrapper calls, so that gradients are synchronised."""
        return self.losses(x, target, weight, count)

    def backbones(self) -> list[nn.Module]:
        """The branches that came pretrained (of other networks the encoder); of a network from scratch none."""
        if not self.pretrained:
            return []
        parts = [getattr(self.net, name, None) for name in ("backbone", "encoder", "shallow")]
        return [p for p in parts if isinstance(p, nn.Module) and not isinstance(p, ShallowBranch)]

    def backbone_parameters(self) -> set[int]:
        """``id`` of every parameter of :meth:`backbones`."""
        return {id(p) for part in self.backbones() for p in part.parameters()}

    def freeze(self, frozen: bool) -> None:
        """Let the pretrained branches learn or not; frozen, their batch norms keep their statistics."""
        for part in self.backbones():
            part.requires_grad_(not frozen)
            part.train(self.training and not frozen)


@dataclass(frozen=True)
class Entry:
    """One network of the registry. ``takes_weights``: an ImageNet backbone can be had for it."""

    description: str
    make: Callable[[int, Mapping[str, Any]], nn.Module]
    takes_weights: bool
    multiple: int = 1
    inference: Mapping[str, Any] = field(default_factory=dict)
    """Options that leave out what only training needs."""


def build(name: str, num_classes: int, pretrained: bool = True, options: Mapping[str, Any] | None = None) -> Network:
    """Build a network of the registry.

    With ``pretrained`` the backbone gets ImageNet weights where the entry takes them; :attr:`Network.pretrained` says
    whether it did. ``options`` are fields of :class:`ISDNetConfig` or arguments of the library's class. Raises
    :class:`InputError` for an unknown name or option.
    """
    entry = REGISTRY.get(name)
    if entry is None:
        raise InputError(f"There is no network '{name}'; known are {', '.join(REGISTRY)}.")
    try:
        net = entry.make(num_classes, options or {})
    except (TypeError, ValueError, KeyError, RuntimeError) as error:  # each is what some library says to a wrong value
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error.args[0] if error.args else error).split())[:160].rstrip(".")
        raise InputError(f"Network '{name}' cannot be built with options {dict(options or {})}: {reason}.") from None
    origin = _pretrain(net) if pretrained and entry.takes_weights else None
    return Network(name, net, origin, entry.multiple)


def _pretrain(net: nn.Module) -> str | None:
    if isinstance(net, ISDNet):
        return _pretrain_isdnet(net)
    return copy_from_pypi(net.get_submodule("encoder"), LITE0.removeprefix("tu-"))


def _pretrain_isdnet(net: ISDNet) -> str | None:
    """ImageNet weights for each branch that is a timm backbone."""
    origins: list[str] = []
    if net.config.branches != "shallow":
        origins.append(load_pretrained(net.backbone, net.config.deep))
    if net.config.branches != "deep" and isinstance(net.shallow, TimmShallow):
        origins.append(load_pretrained(net.shallow, net.config.shallow))
    return "; ".join(dict.fromkeys(origins)) or None


def _isdnet(description: str, base: Callable[[int], ISDNetConfig], takes_weights: bool = False) -> Entry:
    def make(num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return ISDNet(replace(base(num_classes), **dict(options)))

    training_only = {"auxiliary": False, "super_resolution": False, "distillation": None}
    return Entry(description, make, takes_weights, inference=training_only)


def _smp(class_name: str, **defaults: Any) -> Callable[[int, Mapping[str, Any]], nn.Module]:
    def make(num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise MissingExtra(f"Network {class_name}", "segmentation-models-pytorch", "train") from None
        settings = {"encoder_weights": None, "classes": num_classes, **defaults, **dict(options)}
        return getattr(smp, class_name)(**settings)  # type: ignore[no-any-return]

    return make


def _segformer(num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    return fuse_attention(_smp("Segformer", encoder_name="mit_b0")(num_classes, options))


def _mmseg(name: str) -> Entry:
    def make(num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return build_mmseg(name, num_classes, **{"auxiliary": True, **dict(options)})

    model = MMSEG[name]
    return Entry(f"{model.description}, from scratch", make, False, model.multiple, {"auxiliary": False})


def check_available(names: Iterable[str]) -> None:
    """Raise :class:`InputError` for the first name that is unknown or whose library is not installed."""
    for name in names:
        if name not in REGISTRY:
            raise InputError(f"There is no network '{name}'; known are {', '.join(REGISTRY)}.")
        if name in MMSEG:
            require(name)


def available() -> list[str]:
    """Names of the networks whose libraries are installed."""
    return [name for name in REGISTRY if name not in MMSEG or missing() is None]


REGISTRY: dict[str, Entry] = {
    "isdnet-lite0": _isdnet("ISDNet, EfficientNet-Lite0 and narrow shallow branch", ISDNetConfig.lite, True),
    "isdnet-resnet18": _isdnet("ISDNet as published, ResNet18-v1c", lambda k: ISDNetConfig.of("reference", k)),
    "isdnet-resnet50": _isdnet(
        "ISDNet as published, ResNet50-v1c", lambda k: ISDNetConfig.of("reference", k, deep="resnet50")
    ),
    "isdnet-paper-resnet18": _isdnet(
        "ISDNet as written in the paper, ResNet18-v1c", lambda k: ISDNetConfig.of("paper", k)
    ),
    "unet": Entry("UNet, EfficientNet-Lite0", _smp("Unet", encoder_name=LITE0), True, 32),
    "deeplabv3plus": Entry("DeepLabv3+, EfficientNet-Lite0", _smp("DeepLabV3Plus", encoder_name=LITE0), True, 32),
    "pspnet": Entry("PSPNet, EfficientNet-Lite0", _smp("PSPNet", encoder_name=LITE0, encoder_depth=5), True, 32),
    "segformer-b0": Entry("SegFormer-B0, from scratch", _segformer, False, 32),
    "stdc1": _mmseg("stdc1"),
    "bisenetv2": _mmseg("bisenetv2"),
}
"""By name. ImageNet weights of ResNet18-v1c, MiT-B0 and STDC are on no package registry: those start from scratch."""
