"""Feature maps of a whole image in bounded memory: any window of any map equals the crop of the one-shot forward's.

The means over the whole image and the projected maps are those of :class:`~napari_isdnet.engine.streaming.WholeImage`;
what is shown here (maps before their projection, maps after a fusion) is computed from them locally, with halos.
"""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.feature_info import ATTENTION, LOGITS, Extent, strides_of
from napari_isdnet.engine.halo import padded_window
from napari_isdnet.engine.maps import Values
from napari_isdnet.engine.patches import as_array, as_tensor
from napari_isdnet.engine.pieces import cut
from napari_isdnet.engine.streaming import WholeImage
from napari_isdnet.model.isdnet import Branch
from napari_isdnet.model.layers import Place, resize_bilinear
from napari_isdnet.progress import Progress
from napari_isdnet.window import Grid, Window

Array = npt.NDArray[np.float32]
FLOAT32 = np.dtype(np.float32)
CORE = 1024
"""Side in level-0 pixels of what is computed at once of a map that is made from pixels."""


class WholeMaps:
    """Maps of one streamed image. Thread-safe: one caller at a time drives the network."""

    def __init__(self, whole: WholeImage) -> None:
        self.whole, self.model, self.local = whole, whole.model, whole.local
        self._strides = strides_of(whole.model)
        self._lock = threading.RLock()

    @property
    def prepared(self) -> bool:
        """True when every mean over the whole image is known."""
        return self.whole.prepared

    def prepare(self) -> Generator[Progress, None, None]:
        """Find what has to be known of the whole image."""
        yield from self.whole.prepare()

    def extent(self, name: str) -> Extent:
        """Shape of a map and how it lies on the image."""
        sizes, deep = self.whole.sizes, self.whole.sizes.deep
        if name.startswith("H"):
            shape = sizes.image
        elif name in ("deep", "super_resolution"):
            times = 1 if name == "deep" else 16
            shape = (deep[0] * times, deep[1] * times)
        else:
            shape = sizes.s16 if self._strides[name] == 16 else sizes.s8
        return Extent(shape, (sizes.image[0] / shape[0], sizes.image[1] / shape[1]))

    @torch.inference_mode()
    def read(self, name: str, window: Window) -> Array:
        """Values (height, width, channels) of ``window``, in cells of the map."""
        side = max(1, int(CORE / self._strides[name]))
        with self._lock:
            if name == "deep" or max(window.shape) <= side:
                return as_array(self._map(name, window), FLOAT32)
            result: Array | None = None
            for unit in Grid(window.shape, (side, side)):
                values = as_array(self._map(name, unit.shifted(window.row, window.column)), FLOAT32)
                if result is None:
                    result = np.empty((*window.shape, values.shape[2]), np.float32)
                result[unit.slices] = values
        assert result is not None, "a window of a map holds at least one cell"
        return result

    def _map(self, name: str, window: Window) -> Tensor:
        if name.startswith("H"):
            return self._residual(int(name[1:]), window)
        if name in ("shallow8", "shallow16"):
            return self._shallow(name, window)
        if name == "deep":
            return self._deep(window)
        if name == "super_resolution":
            return self._super_resolution(window)
        if name == "fused16":
            return self._first(window, "both")
        if name == "fused8":
            return self._second(window, "both")
        return self._coarse(window, LOGITS[name])

    # ------------------------------------------------------------------ maps of one branch

    def _patch(self, core: Window, halo: int) -> tuple[Tensor, Place]:
        image = self.whole.sizes.image
        patch = padded_window(core, halo, image)
        x = as_tensor(self.whole.reader.read(patch)[0], self.whole.placement.device)
        return x, Place(patch, image)

    def _residual(self, level: int, window: Window) -> Tensor:
        # Two pixels of each level for the low pass, two for the way up, one for the enlargement.
        x, place = self._patch(window, 6 * 2**self.model.config.residual_levels)
        rows, columns = window.relative_to(place.window).slices
        return self.model.shallow_input(x, place)[:, 3 * level : 3 * level + 3, rows, columns]

    def _shallow(self, name: str, window: Window) -> Tensor:
        stride = int(self._strides[name])
        core = window.multiplied(stride).clipped(self.whole.sizes.image)
        x, place = self._patch(core, self.local.shallow_halo)
        maps = self.model.shallow(self.model.shallow_input(x, place).to(self.model.dtype))
        return cut(maps[0 if stride == 8 else 1], window, place.window.divided(stride))

    def _deep(self, window: Window) -> Tensor:
        full = self.whole.sizes.deep
        patch = window.expanded(self.local.head_halo).clipped(full)
        x = self._tensor(self.whole.backbone.read(patch))
        return cut(self.local.head(x, self.whole.gates.pools, Place(patch, full)), window, patch)

    def _super_resolution(self, window: Window) -> Tensor:
        # Three 3x3 convolutions at 4, 8 and 16 cells to one, and the head's: less than one cell of the deep map.
        patch = window.divided(16).expanded(1).clipped(self.whole.sizes.deep)
        image = self.model.super_resolution(self._deep(patch))[1]
        return cut(image, window, patch.multiplied(16))

    def _tensor(self, values: Values) -> Tensor:
        return as_tensor(values, self.whole.placement.device, self.whole.placement.dtype)

    # ------------------------------------------------------------------ fusions

    def _first(self, window: Window, branch: Branch) -> Tensor:
        """The first fusion's map of a window at stride 16."""
        sizes, gates = self.whole.sizes, self.whole.gates.fuse16
        assert gates is not None, "prepare() first"
        patch = window.expanded(self.local.fusion_halo).clipped(sizes.s16)
        out = Place(patch, sizes.s16)
        below = self.local.coarse_window(out, sizes.deep)
        s, d = self._tensor(self.whole.shallow16.read(patch)), self._tensor(self.whole.deep.read(below))
        fused = self.local.fuse(self.model.fuse16, s, d, gates, Place(below, sizes.deep), out, branch)
        return cut(fused, window, patch)

    def _projected(self, window: Window, branch: Branch) -> Tensor:
        """The first fusion's map as it enters the second one."""
        if branch == "both":
            return self._tensor(self.whole.fused.read(window))
        patch = window.expanded(self.local.fusion_halo).clipped(self.whole.sizes.s16)
        return cut(self.model.fuse8.project_deep(self._first(patch, branch)), window, patch)

    def _second(self, window: Window, branch: Branch) -> Tensor:
        """The second fusion's map of a window at stride 8."""
        sizes, gates = self.whole.sizes, self.whole.gates.fuse8
        assert gates is not None, "prepare() first"
        patch = window.expanded(self.local.head8_halo).clipped(sizes.s8)
        out = Place(patch, sizes.s8)
        below = self.local.coarse_window(out, sizes.s16)
        s, d = self._tensor(self.whole.shallow8.read(patch)), self._projected(below, branch)
        # For the shallow branch the first fusion has left out the deep one already.
        only: Branch = "deep" if branch == "deep" else "both"
        fused = self.local.fuse(self.model.fuse8, s, d, gates, Place(below, sizes.s16), out, only)
        return cut(fused, window, patch)

    def _coarse(self, window: Window, branch: Branch) -> Tensor:
        """Logits of a window at stride 8."""
        patch = window.expanded(self.local.head8_halo).clipped(self.whole.sizes.s8)
        return cut(self.model.classifier(self._second(patch, branch)), window, patch).float()

    # ------------------------------------------------------------------ answers

    def attention(self, row: float, column: float) -> dict[str, Array]:  # noqa: ARG002 (the same everywhere)
        """M_s, M_d (C,) and R (G, G) of both fusions: those of the whole image."""
        with self._lock:
            result: dict[str, Array] = {}
            for stride, gates in ((16, self.whole.gates.fuse16), (8, self.whole.gates.fuse8)):
                assert gates is not None, "prepare() first"
                for letter, value in (("M_s", gates.m_shallow), ("M_d", gates.m_deep), ("R", gates.relation)):
                    if value is not None:
                        result[f"{letter}{stride}"] = value[0].float().cpu().numpy()
        return {name: result[name] for name in ATTENTION if name in result}

    @torch.inference_mode()
    def logits(self, window: Window, branch: Branch = "both") -> Tensor:
        """Full-resolution logits (1, K, h, w) of a level-0 window, float32, on the CPU."""
        sizes = self.whole.sizes
        with self._lock:
            window8 = self.local.coarse_window(Place(window, sizes.image), sizes.s8)
            coarse = self._coarse(window8, branch)
            return resize_bilinear(coarse, Place(window8, sizes.s8), Place(window, sizes.image)).cpu()

    def close(self) -> None:
        """Release memory and files."""
        with self._lock:
            self.whole.close()
