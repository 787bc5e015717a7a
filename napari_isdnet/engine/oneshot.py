"""A network that cannot be streamed, on an image that fits: one forward of the whole image."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.device import Placement, device_memory
from napari_isdnet.engine.patches import Patches, as_tensor, check_size
from napari_isdnet.engine.pieces import Enlarging, labels_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import MIN_SIDE, ISDNet
from napari_isdnet.model.layers import Place, resize_bilinear
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window


def bytes_per_pixel(config: ISDNetConfig) -> int:
    """Bytes a pixel that a float32 forward of a whole image takes at its peak, beyond the weights; rounded up.

    Measured as the growth of the process on squares of 640 to 1024 pixels, batch norm folded: 131 to 143 with both
    branches (STDC-2, STDC-1; ResNet18 at a quarter), 183 with EfficientNet-B0 as deep branch, 117 for the shallow
    branch alone, 268 and 770 for ResNet18 and ResNet50 alone at full scale; 297 with EfficientNet-Lite0 as shallow
    branch, whose blocks widen six times at half the side (2048 pixels).
    """
    shallow = 200 if config.shallow in ("stdc1", "stdc2", "narrow") else 350
    return shallow if config.branches == "shallow" else shallow + 600 // config.downscale**2


class OneShot(Enlarging):
    """The same interface as :class:`~napari_isdnet.engine.streaming.WholeImage`, for what fits in ``budget`` bytes."""

    def __init__(self, model: ISDNet, reader: Patches, placement: Placement, budget: int, cause: str) -> None:
        check_size(reader.shape, MIN_SIDE)
        need = reader.shape[0] * reader.shape[1] * bytes_per_pixel(model.config)
        if need > budget:
            raise InputError(
                f"{cause}, so this image of {reader.shape[0]} x {reader.shape[1]} pixels has to be inferred at once,"
                f" which takes about {need / 2**30:.2g} GiB where --memory leaves {budget / 2**30:.2g} GiB beside the"
                " network; use --context window or a larger --memory."
            )
        self.model, self.reader, self.placement = model, reader, placement
        self._coarse: Tensor | None = None

    @property
    def prepared(self) -> bool:
        """True once the image was forwarded."""
        return self._coarse is not None

    @torch.inference_mode()
    def prepare(self) -> Generator[Progress, None, None]:
        """Forward the whole image."""
        if self._coarse is None:
            whole = Window.whole(self.reader.shape)
            x = as_tensor(self.reader.read(whole)[0], self.placement.device)
            with device_memory():
                self._coarse = self.model.coarse_logits(x).float()
            yield Progress(1.0, 1.0, "whole image", whole)

    def _place(self) -> tuple[Tensor, Place]:
        assert self._coarse is not None, "prepare() first"
        return self._coarse, Place.whole(self._coarse)

    def fine(self, window: Window) -> Callable[[Window], Tensor]:  # noqa: ARG002 (all of it is there)
        """Full-resolution logits (1, K, h, w), float32, of parts of a window."""
        coarse, place = self._place()
        return lambda part: resize_bilinear(coarse, place, Place(part, self.reader.shape))

    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What ``labels`` and ``fine`` give."""
        coarse, place = self._place()
        return self.reader.mask(labels_of(coarse, place, window, self.reader.shape), window), self.fine(window)

    def close(self) -> None:
        """Forget the logits."""
        self._coarse = None
