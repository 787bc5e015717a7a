"""A stroke says more than the pixels under it: each superpixel that a thin stroke lies in takes its class.

As in scribble-supervised segmentation (ScribbleSup, Lin et al., CVPR 2016), but for one step of it: no class goes
further than the superpixels that were touched. What is painted as an area (a polygon, a filled region) has the border
that its painter gave it, and stays as it is; so does every pixel that is painted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.snapshot import Labels, Snapshot

from napari_isdnet.annotation.chunks import CHUNK
from napari_isdnet.annotation.counts import Place
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet_training.strokecrops import Normaliser

COMPACTNESS, SIGMA = 10.0, 1.0
_KEPT = 64
_DENSE = 0.5
"""Where more than this share of a chunk is painted, nobody drew strokes."""


class SpreadLabels:
    """Annotation values of a snapshot, its thin strokes taken to superpixels of about ``side`` x ``side`` pixels.

    Made chunk by chunk where a window is read, so that the work depends on the windows of a run alone, and nothing
    painted passes from a region that teaches to one that judges: a chunk lies in one region. How thick a piece is, is
    seen ``side`` pixels beyond the chunk, so that an area which the chunk's border cuts stays an area.
    """

    def __init__(self, snapshot: Snapshot, pixels: Normaliser, side: int) -> None:
        self._snapshot, self._pixels, self._side = snapshot, pixels, side
        self._chunk = lru_cache(maxsize=_KEPT)(self._make)

    def read_labels(self, window: Window) -> Labels:
        """(height, width) annotation values of ``window`` (level 0), 0 where nothing is known."""
        return self._snapshot.read_labels(window, self._chunk)

    def _make(self, place: Place) -> Labels:
        labels = self._snapshot.chunk(place)
        window = Window(place[0] * CHUNK, place[1] * CHUNK, CHUNK, CHUNK).clipped(self._snapshot.shape)
        own = labels[: window.height, : window.width]
        if np.count_nonzero(own) > _DENSE * window.area:
            return labels
        pixels, valid = self._pixels.pixels(window)
        taken = spread(own, pixels, self._side, self._thin(window))
        if valid is not None:
            taken[~valid] = own[~valid]
        result = labels.copy()
        result[: window.height, : window.width] = taken
        return result

    def _thin(self, window: Window) -> npt.NDArray[np.bool_]:
        """Where strokes are in a chunk, judged with the ``side`` pixels around it that lie in the image."""
        top, left = max(0, window.row - self._side), max(0, window.column - self._side)
        bottom, right = window.bottom + self._side, window.right + self._side
        around = Window(top, left, bottom - top, right - left).clipped(self._snapshot.shape)
        return _thin(self._snapshot.read_labels(around), self._side)[window.relative_to(around).slices]


def spread(
    labels: Labels, pixels: npt.NDArray[np.float32], side: int, thin: npt.NDArray[np.bool_] | None = None
) -> Labels:
    """Annotation values (H, W) with the superpixels of ``pixels`` (H, W, 3; 0..255) that one class' strokes lie in.

    Only what is thinner than ``side`` is a stroke; ``thin`` (H, W) says where, if more is known of it than ``labels``
    show. A superpixel with strokes of two classes is left as it is. SLIC: Achanta et al., TPAMI 2012.
    """
    thin = _thin(labels, side) if thin is None else thin
    if not thin.any():
        return labels.copy()
    from skimage.segmentation import slic

    count = max(1, round(labels.size / side**2))
    image = np.clip(pixels / 255.0, 0.0, 1.0)
    segments = slic(image, n_segments=count, compactness=COMPACTNESS, sigma=SIGMA, start_label=0, channel_axis=-1)
    votes = np.zeros((int(segments.max()) + 1, int(labels.max()) + 1), np.int64)
    np.add.at(votes, (segments[labels > 0], labels[labels > 0]), 1)
    touched = np.zeros(len(votes), np.bool_)
    touched[segments[thin]] = True
    value = np.where(touched & ((votes > 0).sum(axis=1) == 1), votes.argmax(axis=1), 0).astype(np.uint8)
    return np.where(labels > 0, labels, value[segments])


def _thin(labels: Labels, side: int) -> npt.NDArray[np.bool_]:
    """The pixels of connected pieces of one class that are nowhere as wide as ``side``."""
    from scipy.ndimage import distance_transform_edt, label, maximum

    thin = np.zeros(labels.shape, np.bool_)
    for value in np.unique(labels[labels > 0]):
        painted = labels == value
        pieces, count = label(painted, structure=np.ones((3, 3)))
        depth = distance_transform_edt(painted)
        widest = np.asarray(maximum(depth, pieces, np.arange(count + 1)))
        thin |= painted & (2 * widest[pieces] < side)
    return thin
