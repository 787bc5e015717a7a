"""Refinements that libraries offer: an image and coarse class probabilities to a finer label map."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD

Refine = Callable[[Tensor, Tensor], Tensor]
"""``image (1, 3, H, W), probabilities (K, H, W) float32 -> labels (H, W) uint8``, on the image's device.

The image is normalised by the mean and deviation of ImageNet.
"""

RADIUS, SMOOTHNESS, SUBSAMPLE = 16, 1e-3, 4
STEPS = 5


@dataclass(frozen=True)
class Refinement:
    """A refinement, the module it needs and the extra that brings it."""

    description: str
    module: str
    extra: str
    refine: Refine

    def absent(self) -> str | None:
        """Why it cannot be used here; None where it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed (the extra '{self.extra}' brings it)"
        return None


def _pixels(x: Tensor) -> Tensor:
    """(1, 3, H, W) normalised back to (H, W, 3) on the 0..255 scale."""
    mean, std = torch.tensor(IMAGENET_MEAN, device=x.device), torch.tensor(IMAGENET_STD, device=x.device)
    return x[0].permute(1, 2, 0) * std + mean


def guided_filter(x: Tensor, probabilities: Tensor) -> Tensor:
    """Every class's probabilities filtered along the image's edges (He et al. 2010; in its fast form, He and Sun 2015).

    Radius 16 pixels, epsilon 1e-3 on the 0..1 scale, coefficients from every fourth pixel: from all of them, an image
    of 5000 x 5000 needs more than 10 GiB.
    """
    from kornia.filters import guided_blur

    guide = (_pixels(x) / 255).permute(2, 0, 1)[None]
    finer = guided_blur(guide, probabilities[None], 2 * RADIUS + 1, SMOOTHNESS, subsample=SUBSAMPLE)
    return finer[0].argmax(0).to(torch.uint8)


def dense_crf(x: Tensor, probabilities: Tensor) -> Tensor:
    """Mean field of a fully connected CRF (Krähenbühl and Koltun 2011), 5 steps, on one CPU core whatever the device.

    Kernels as in the library's own example: 3 pixels with weight 3; 80 pixels and 13 grey values with weight 10.
    """
    import numpy as np
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = probabilities.shape
    field = DenseCRF2D(width, height, classes)
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities.cpu().numpy())))
    field.addPairwiseGaussian(sxy=3, compat=3)
    image = _pixels(x).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    best = np.asarray(field.inference(STEPS)).argmax(0).reshape(height, width)
    return torch.from_numpy(best.astype(np.uint8)).to(x.device)


REFINEMENTS: dict[str, Refinement] = {
    "guided": Refinement("guided filter", "kornia", "refinements", guided_filter),
    "densecrf": Refinement("DenseCRF", "pydensecrf", "densecrf", dense_crf),
}


def find_refinement(name: str) -> Refine:
    """A refinement by name; InputError says why it cannot be had."""
    found = REFINEMENTS.get(name)
    if found is None:
        raise InputError(f"There is no refinement '{name}'; known are {', '.join(REFINEMENTS)}.")
    reason = found.absent()
    if reason is not None:
        raise InputError(f"The refinement '{name}' is not available here: {reason}.")
    return found.refine
