"""ISDNet (Guo et al., CVPR 2022): a shallow branch at full resolution, a deep branch at 1/4, fused in cascade."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.auxiliary import (
    STAGE_WEIGHT,
    SUPER_RESOLUTION_WEIGHT,
    StageHead,
    SuperResolutionHead,
    distillation_loss,
    reconstruction_loss,
    segmentation_loss,
)
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.deep import build_backbone
from napari_isdnet.model.fusion import Attention, Fusion
from napari_isdnet.model.heads import build_head
from napari_isdnet.model.laplacian import LaplacianPyramid
from napari_isdnet.model.layers import ClassifierHead, Place
from napari_isdnet.model.shallow import build_shallow

if TYPE_CHECKING:
    from napari_isdnet.model.header import ModelHeader

Branch = Literal["both", "shallow", "deep"]
MIN_SIDE = 32


@dataclass
class Output:
    """Result of a forward pass: ``logits`` (B, K, H, W) and, when asked for, ``features`` by name."""

    logits: Tensor
    features: dict[str, Tensor] | None = None


@dataclass
class Maps:
    """What the losses and the inspection need besides the coarse logits; empty in a plain forward."""

    named: dict[str, Tensor] = field(default_factory=dict)

    def attention(self, stride: int, attention: Attention) -> None:
        """Keep the attention vectors and the relation matrix of one fusion."""
        for name, value in (("M_s", attention.m_shallow), ("M_d", attention.m_deep), ("R", attention.relation)):
            if value is not None:
                self.named[f"{name}{stride}"] = value


@lru_cache(maxsize=64)
def nearest_index(n_in: int, n_out: int) -> tuple[int, ...]:
    """Which of ``n_in`` pixels torch's nearest-neighbour resize to ``n_out`` takes, computed by torch itself.

    In float32, as images are: torch takes its scale in the arithmetic of the samples, and one size in fifty has an
    index that float64 rounds the other way.
    """
    line = torch.arange(n_in, dtype=torch.float32).view(1, 1, -1)
    return tuple(int(v) for v in F.interpolate(line, size=n_out, mode="nearest")[0, 0])


TRAINING_ONLY = ("deep_classifier.", "aux_stage.", "super_resolution.", "aux16.", "aux8.")
"""How the names of weights begin that only training needs: they are in a network of ``config`` and not in one of
``config.inference()``."""


class Unfilled(TorchFunctionMode):
    """Networks that are made in it have any weights, and draw no random numbers.

    To draw the weights that a file replaces took longer than to read them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave torch's initialisers out, by which layers are filled here and in timm."""
        given = {**(kwargs or {})}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


class ISDNet(nn.Module):
    """The network of a configuration.

    ``model(x)`` takes normalised float images (B, 3, H, W), sides of at least 32 pixels; returns an :class:`Output`.
    ``header`` says which classes, normalisation and training a loaded model has (None for a bare network).
    """

    header: ModelHeader | None = None

    def __init__(self, config: ISDNetConfig) -> None:
        super().__init__()
        self.config = config
        c, k = config.channels, config.num_classes
        self.pyramid = LaplacianPyramid(config.residual_levels)
        self.dropout = nn.Dropout2d(config.dropout)
        if config.branches != "deep":
            self.shallow = build_shallow(config)
        if config.branches != "shallow":
            self.backbone = build_backbone(config)
            self.head = build_head(config, self.backbone.out_channels[1])
            if config.auxiliary:
                self.deep_classifier = nn.Conv2d(c, k, 1)
                self.aux_stage = StageHead(self.backbone.out_channels[0], k, config.dropout)
            if config.super_resolution:
                self.super_resolution = SuperResolutionHead(c)
        if config.fuses:
            s8, s16 = self.shallow.out_channels
            self.fuse16, self.fuse8 = Fusion(s16, c, config), Fusion(s8, c, config)
            if config.auxiliary:
                self.aux16, self.aux8 = ClassifierHead(c, k), ClassifierHead(c, k)
        elif config.branches == "shallow":
            s8, s16 = self.shallow.out_channels
            self.merge = Fusion(s8, s16, config, kind="add")
        self.classifier = ClassifierHead(c, k)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; layers that give logits start near zero, so that no class is favoured at first."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and ".body." not in name:
                if module.out_channels == self.config.num_classes and module.bias is not None:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the convolutions; residuals and the deep input are computed in that of the image."""
        return self.classifier.out.weight.dtype

    # ------------------------------------------------------------------ pieces, also used by the streaming engine

    def shallow_input(self, x: Tensor, place: Place | None = None) -> Tensor:
        """What the shallow branch sees of (B, 3, H, W): residuals (Eq. 1) or the image itself (Table 7)."""
        return x if self.config.shallow_input == "rgb" else self.pyramid.residuals(x, place)

    def deep_size(self, height: int, width: int) -> tuple[int, int]:
        """Shape of the deep branch's input for an image of (height, width)."""
        s = self.config.downscale
        if self.config.deep_filter == "nearest":
            return max(1, height // s), max(1, width // s)
        return -(-height // s), -(-width // s)

    def deep_input(self, x: Tensor) -> Tensor:
        """The image at 1/``downscale``: every n-th pixel (published) or the low-passed pyramid level (Figure 3)."""
        if self.config.downscale == 1:
            return x
        if self.config.deep_filter == "nearest":
            return F.interpolate(x, size=self.deep_size(x.shape[2], x.shape[3]), mode="nearest")
        return self.pyramid.lowpass(x, self.config.downscale.bit_length() - 1)

    # ------------------------------------------------------------------ forward

    def forward(self, x: Tensor, features: bool = False, branch: Branch = "both") -> Output:
        """Normalised (B, 3, H, W) to logits (B, K, H, W).

        ``features=True`` adds ``residuals, shallow8, shallow16, deep, fused16, fused8`` and ``M_s16, M_d16, R16, M_s8,
        M_d8, R8``. ``branch`` asks what one branch alone would say: the attention stays that of the whole network; for
        ``deep`` the gated shallow feature is zero in both sums; for ``shallow`` the gated deep feature is zero in the
        first sum, so that the second one carries shallow features only.
        """
        maps = Maps() if features else None
        logits = self.coarse_logits(x, branch, maps)
        logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return Output(logits, _public(maps.named) if maps else None)

    def coarse_logits(self, x: Tensor, branch: Branch = "both", maps: Maps | None = None) -> Tensor:
        """Logits (B, K, h, w) before the last enlargement (stride 8 for the fused network)."""
        self._check(x, branch)
        if self.config.branches == "deep":
            return self.classifier(self.dropout(self._deep(x, maps)))
        if self.config.branches == "shallow":
            return self._shallow_alone(x, maps)
        deep = self._deep(x, maps)
        s8, s16 = self._shallow(x, maps)
        fused, context16, attention = self.fuse16(s16, deep)
        attention8: Attention | None = None
        if branch != "both":
            # The second fusion attends to what the whole network feeds it, not to what one branch leaves of it.
            attention8 = self.fuse8.attend(self.fuse8.project_shallow(s8), self.fuse8.project_deep(fused))
            fused, context16, _ = self.fuse16(s16, deep, branch == "deep", branch == "shallow", attention)
        if maps is not None:
            maps.named.update(shallow16=s16, fused16=fused, context16=context16)
            maps.attention(16, attention)
        del s16, deep, context16
        fused, context8, attention = self.fuse8(s8, fused, branch == "deep", False, attention8)
        if maps is not None:
            maps.named.update(shallow8=s8, fused8=fused, context8=context8)
            maps.attention(8, attention)
        del s8, context8
        return self.classifier(self.dropout(fused))

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All before the last fusion of (B, 3, H, W): the shallow map at stride 8 and the first fusion at stride 16."""
        self._check(x, "both")
        deep = self._deep(x, None)
        s8, s16 = self._shallow(x, None)
        return s8, self.fuse16(s16, deep)[0]

    def from_trunk(self, trunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at stride 8 as of :meth:`coarse_logits`, and the context of the last fusion."""
        fused, context8, _ = self.fuse8(*trunk)
        return self.classifier(self.dropout(fused)), context8

    def _check(self, x: Tensor, branch: Branch) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise InputError(f"ISDNet takes images of shape (B, 3, H, W), got {tuple(x.shape)}.")
        if min(x.shape[2:]) < MIN_SIDE:
            raise InputError(f"ISDNet needs at least {MIN_SIDE} pixels a side, got {x.shape[2]} x {x.shape[3]}.")
        seen = self.deep_size(*x.shape[2:]) if "shallow" in (self.config.branches, branch) else x.shape[2:]
        if min(seen) < 3 * 2 ** (self.config.residual_levels - 1):
            raise InputError(
                f"{self.config.residual_levels} levels of residuals of an image at 1/{self.config.downscale} need more"
                f" than {x.shape[2]} x {x.shape[3]} pixels."
            )
        if branch != "both" and not self.config.fuses:
            raise InputError("This network has one branch only; 'branch' must be 'both'.")

    def _shallow(self, x: Tensor, maps: Maps | None) -> tuple[Tensor, Tensor]:
        residuals = self.shallow_input(x)
        if maps is not None:
            maps.named["residuals"] = residuals
        return self.shallow(residuals.to(self.dtype))

    def _deep(self, x: Tensor, maps: Maps | None) -> Tensor:
        stage, last = self.backbone(self.deep_input(x).to(self.dtype))
        deep = self.head(last)
        if maps is not None:
            maps.named.update(stage=stage, deep=deep)
        return deep

    def _shallow_alone(self, x: Tensor, maps: Maps | None) -> Tensor:
        s8, s16 = self._shallow(self.deep_input(x), maps)
        fused, _, _ = self.merge(s8, s16)
        if maps is not None:
            maps.named.update(shallow8=s8, shallow16=s16, fused8=fused)
        return self.classifier(self.dropout(fused))

    # ------------------------------------------------------------------ training

    def losses(
        self,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        count: Tensor | None = None,
        said: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every training loss (Eq. 8) of normalised (B, 3, H, W) and class indices (B, H, W), 255 ignored.

        Keys: ``seg``; with auxiliary heads ``aux_deep``, ``aux16``, ``aux8``, ``aux_stage`` (times 0.4);
        ``super_resolution`` (times 0.1) and ``distillation``, which need no labels; and ``total``, their sum.
        ``weight`` (K,) weighs the classes in the segmentation terms; ``count`` is for a part of a larger batch, see
        :func:`~napari_isdnet.model.auxiliary.segmentation_loss`. The logits at their stride are added to ``said``, for
        another loss of them.
        """
        if target.shape[0] != x.shape[0] or target.shape[-2:] != x.shape[-2:]:
            raise InputError(f"The target {tuple(target.shape)} does not fit the image {tuple(x.shape)}.")
        maps = Maps()
        over_all = self.config.flavour == "reference"
        logits = self.coarse_logits(x, maps=maps)
        if said is not None:
            said.append(logits)

        def seg(values: Tensor) -> Tensor:
            return segmentation_loss(values, target, weight, over_all, count)

        losses = {"seg": seg(logits)}
        named, config = maps.named, self.config
        if config.auxiliary and config.branches != "shallow":
            losses["aux_deep"] = seg(self.deep_classifier(self.dropout(named["deep"])))
            if config.fuses:
                losses["aux16"] = seg(self.aux16(named["context16"]))
                losses["aux8"] = seg(self.aux8(named["context8"]))
            losses["aux_stage"] = seg(self.aux_stage(named["stage"])) * STAGE_WEIGHT
        if config.super_resolution and config.branches != "shallow":
            losses.update(self._label_free_losses(x, named))
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def last_losses(
        self, trunk: tuple[Tensor, Tensor], target: Tensor, said: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Those of :meth:`losses` that teach the last fusion and the classifier, and ``total``, their sum."""
        over_all = self.config.flavour == "reference"
        logits, context8 = self.from_trunk(trunk)
        if said is not None:
            said.append(logits)
        losses = {"seg": segmentation_loss(logits, target, None, over_all)}
        if self.config.auxiliary:
            losses["aux8"] = segmentation_loss(self.aux8(context8), target, None, over_all)
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def _label_free_losses(self, x: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor]:
        features, image = self.super_resolution(named["deep"])
        losses = {"super_resolution": reconstruction_loss(self._sr_target(x, named), image) * SUPER_RESOLUTION_WEIGHT}
        if self.config.distillation is not None:
            points = self.config.distillation_points if self.config.distillation == "sampled" else None
            per_pixel = self.config.flavour == "paper"
            losses["distillation"] = distillation_loss(named["deep"], features, points, per_pixel)
        return losses

    def _sr_target(self, x: Tensor, named: dict[str, Tensor]) -> Tensor:
        """The image (Eq. 6), or H_0 plus the enlarged H_1 of it as published."""
        if self.config.flavour == "paper":
            return x
        residuals = named.get("residuals")
        if residuals is None or self.config.shallow_input == "rgb" or self.config.residual_levels < 2:
            residuals = LaplacianPyramid(2).to(x.device).residuals(x)
        return residuals[:, 0:3] + residuals[:, 3:6]


def _public(named: dict[str, Tensor]) -> dict[str, Tensor]:
    hidden = ("context16", "context8", "stage")
    return {key: value for key, value in named.items() if key not in hidden}
