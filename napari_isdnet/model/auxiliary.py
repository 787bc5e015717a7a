"""Training-only parts: auxiliary classifiers, super-resolution head (Eq. 6), structure distillation (Eq. 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.model.layers import ClassifierHead, ConvBNReLU

STAGE_WEIGHT = 0.4
SUPER_RESOLUTION_WEIGHT = 0.1


class StageHead(nn.Module):
    """FCN head on the third backbone stage: 3x3 to a quarter of the width, dropout, 1x1 classifier."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        width = max(16, in_channels // 4)
        self.conv = ConvBNReLU(in_channels, width)
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, K, h, w)."""
        return self.out(self.dropout(self.conv(x)))


class SuperResolutionHead(nn.Module):
    """Deep features at stride 32 to an image at stride 2, through three nearest-neighbour enlargements (Eq. 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvBNReLU(channels, half)
        self.conv2 = ConvBNReLU(half, half)
        self.conv3 = ConvBNReLU(half, channels)
        self.head = ClassifierHead(channels, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to features (B, C, 16 h, 16 w) and image (B, 3, 16 h, 16 w)."""
        x = self.conv1(F.interpolate(x, scale_factor=4.0))
        x = self.conv2(F.interpolate(x, scale_factor=2.0))
        features = self.conv3(F.interpolate(x, scale_factor=2.0))
        return features, self.head(features)


def labelled_weight(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """How many pixels of (B, H, W) are labelled (not 255), each counted by the weight of its class (K,); a scalar."""
    labelled = target != IGNORE_INDEX
    if weight is None:
        return labelled.sum()
    return weight[target.where(labelled, torch.zeros_like(target))][labelled].sum()


def segmentation_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, over_all: bool = False, count: Tensor | None = None
) -> Tensor:
    """Cross entropy of (B, K, h, w) logits, enlarged to the (B, H, W) target; 255 is ignored.

    The mean is over labelled pixels; ``count`` is what it divides by instead of their own :func:`labelled_weight`, so
    that the mean over parts of one batch is that of the batch. ``over_all`` divides by all pixels, as the published
    implementation does. Without any labelled pixel the loss is zero (and differentiable).
    """
    logits = F.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE_INDEX, reduction="sum")
    if over_all:
        return total / target.numel()
    if count is None:
        count = labelled_weight(target, weight)
    return total / count.clamp(min=1e-6) if bool((target != IGNORE_INDEX).any()) else total * 0.0


def reconstruction_loss(image: Tensor, prediction: Tensor) -> Tensor:
    """Mean squared error of the super-resolution image, enlarged bilinearly to (B, 3, H, W) (Eq. 6)."""
    prediction = F.interpolate(prediction.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)
    return F.mse_loss(prediction, image.float())


def distillation_loss(deep: Tensor, teacher: Tensor, points: int | None = None, per_pixel: bool = False) -> Tensor:
    """Structure distillation (Eq. 7): mean L1 distance of the two (h w)^2 similarity matrices.

    ``deep`` is (B, C, h, w); ``teacher``, the super-resolution features, is enlarged to it and not differentiated.
    Features are L2-normalised per channel over space (as published) or per pixel over channels (``per_pixel``, the
    cosine similarity of the paper). With ``points``, at most that many positions are drawn: the mean over the
    submatrix is an unbiased estimate up to the diagonal, and needs ``points``^2 instead of (h w)^2 floats.
    """
    teacher = F.interpolate(teacher.detach().float(), size=deep.shape[-2:], mode="bilinear", align_corners=False)
    axis = 1 if per_pixel else 2
    flat = [t.flatten(2) for t in (deep.float(), teacher)]
    unit = [t / (t.norm(dim=axis, keepdim=True) + 1e-6) for t in flat]
    count = unit[0].shape[2]
    if points is not None and count > points:
        chosen = torch.randperm(count, device=deep.device)[:points]
        unit = [t[:, :, chosen] for t in unit]
    a, b = (torch.bmm(t.transpose(1, 2), t) for t in unit)
    return F.l1_loss(a, b)
