"""Feature maps of windows that are each their own whole image, laid side by side; and of one that is the whole image.

Every cell of a map is answered by the window of the fixed grid in whose middle it lies, so that the map of a region is
the crop of the map of the image. Nothing is blended: a cell shows what one forward pass has computed.
"""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.device import Placement
from napari_isdnet.engine.feature_info import ATTENTION, LOGITS, Extent, strides_of
from napari_isdnet.engine.patches import PatchReader, as_array, as_tensor
from napari_isdnet.engine.recent import Recent
from napari_isdnet.engine.windowed import WindowPredictor
from napari_isdnet.model.isdnet import Branch, ISDNet
from napari_isdnet.window import Window

Array = npt.NDArray[np.float32]
CACHE_BYTES = 256 * 2**20
FLOAT32 = np.dtype(np.float32)


class WindowMaps:
    """Maps of one image under one network, window by window. Thread-safe.

    ``window`` is the side of a window in pixels, by default the model's own; a side of at least the image's makes the
    image one window.
    """

    def __init__(
        self, model: ISDNet, reader: PatchReader, placement: Placement, window: int | None = None, whole: bool = False
    ) -> None:
        side = -(-max(reader.shape) // 32) * 32 if whole else window
        branches: tuple[Branch, ...] = ("both", "shallow", "deep") if model.config.fuses else ("both",)
        self._predictors = {b: WindowPredictor(model, reader, placement, side, branch=b) for b in branches}
        self.model, self.reader, self.placement = model, reader, placement
        self.grid = self._predictors["both"].grid
        self._strides = strides_of(model)
        self._cuts = tuple(self._borders(axis) for axis in (0, 1))
        self._cache: Recent[Window, dict[str, Array]] = Recent(CACHE_BYTES, _bytes)
        self._lock = threading.Lock()

    def _borders(self, axis: int) -> list[float]:
        """Where one window hands over to the next: the middle of their overlap."""
        return [(first + self.grid.size + second) / 2 for first, second in pairwise(self.grid.starts[axis])]

    @property
    def prepared(self) -> bool:
        """Windows need no preparation."""
        return True

    def extent(self, name: str) -> Extent:
        """Shape of a map and how it lies on the image; runs no network."""
        image, stride = self.reader.shape, self._strides[name]
        shape, scale = [], []
        for axis in (0, 1):
            if len(self.grid.starts[axis]) == 1:
                # One window: the map's own size, enlarged to the image as the network enlarges it.
                count = self._count(name, image[axis])
                shape.append(count)
                scale.append(image[axis] / count)
            else:
                shape.append(int(-(-image[axis] // stride)))
                scale.append(float(stride))
        return Extent((shape[0], shape[1]), (scale[0], scale[1]))

    def _count(self, name: str, side: int) -> int:
        """Cells along an axis of the map of a window of ``side`` pixels."""
        config = self.model.config
        small = self.model.deep_size(side, side)[0]
        stride = int(self._strides["deep" if name == "super_resolution" else name])
        if name in ("deep", "super_resolution") or config.branches == "deep":
            cells = -(-small // (stride // config.downscale))
            return cells * 16 if name == "super_resolution" else cells
        if config.branches == "shallow":  # the branch alone sees the small image
            return -(-small // (stride // config.downscale))
        return -(-side // stride)

    def _window_shape(self) -> tuple[int, int]:
        rows, columns = (min(self.grid.size, side) for side in self.reader.shape)
        return rows, columns

    @torch.inference_mode()
    def _features(self, window: Window) -> dict[str, Array]:
        with self._lock:
            found = self._cache.get(window)
            if found is None:
                found = self._compute(window)
                self._cache.put(window, found)
            return found

    def _compute(self, window: Window) -> dict[str, Array]:
        x = as_tensor(self.reader.read(window)[0], self.placement.device)
        output = self.model(x, features=True)
        assert output.features is not None
        result: dict[str, Array] = {}
        for name, value in output.features.items():
            if name in ATTENTION:
                result[name] = value[0].float().cpu().numpy()
            elif name == "residuals":
                for level in range(value.shape[1] // 3):
                    result[f"H{level}"] = as_array(value[:, 3 * level : 3 * level + 3], FLOAT32)
            else:
                result[name] = as_array(value, FLOAT32)
        if "super_resolution" in self._strides:
            result["super_resolution"] = as_array(self.model.super_resolution(output.features["deep"])[1], FLOAT32)
        return result

    def _map(self, name: str, window: Window) -> Array:
        if name in LOGITS:
            return as_array(self._predictors[LOGITS[name]].coarse_logits(window), FLOAT32)
        return self._features(window)[name]

    def read(self, name: str, window: Window) -> Array:
        """Values (height, width, channels) of ``window``, in cells of the map."""
        scale = self.extent(name).scale
        owners, places = [], []
        for axis, (start, stop) in enumerate(window.spans):
            centre = (np.arange(start, stop) + 0.5) * scale[axis]  # in pixel edges
            owners.append(np.searchsorted(self._cuts[axis], centre, side="right"))
            places.append(centre)
        result: Array | None = None
        for i in np.unique(owners[0]):
            for j in np.unique(owners[1]):
                origin = self.grid.starts[0][i], self.grid.starts[1][j]
                values = self._map(name, Window(*origin, *self._window_shape()))
                rows, columns = owners[0] == i, owners[1] == j
                picked = [
                    _cells(place[mine] - origin[axis], side, count)
                    for axis, (place, mine, side, count) in enumerate(
                        zip(places, (rows, columns), self._window_shape(), values.shape, strict=False)
                    )
                ]
                if result is None:
                    result = np.empty((*window.shape, values.shape[2]), np.float32)
                result[np.ix_(rows, columns)] = values[np.ix_(*picked)]
        assert result is not None, "a window of a map holds at least one cell"
        return result

    def attention(self, row: float, column: float) -> dict[str, Array]:
        """M_s, M_d (C,) and R (G, G) of both fusions, of the window that answers for a pixel."""
        origin = [
            self.grid.starts[axis][int(np.searchsorted(self._cuts[axis], position, side="right"))]
            for axis, position in enumerate((row, column))
        ]
        found = self._features(Window(origin[0], origin[1], *self._window_shape()))
        return {name: found[name] for name in ATTENTION if name in found}

    def logits(self, window: Window, branch: Branch = "both") -> Tensor:
        """Blended logits (1, K, h, w) of a level-0 window."""
        return self._predictors[branch].logits(window).cpu()

    def close(self) -> None:
        """Forget everything."""
        for predictor in self._predictors.values():
            predictor.close()
        with self._lock:
            self._cache.clear()


def _cells(position: npt.NDArray[np.float64], side: int, count: int) -> npt.NDArray[np.intp]:
    """Index of the cell of a window's map in which a position (in pixel edges of the window) lies."""
    return np.clip((position * (count / side)).astype(np.intp), 0, count - 1)


def _bytes(arrays: dict[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())
