"""Where to annotate next: what the layers of a window say about it, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.suggest import Suggestion, next_regions, place_side
from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._segment_layers import CLASSES, is_of_another, shape_of
from napari_isdnet.window import Window

MAP_SIDE = 2048
COUNT = 12
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Guide:
    """What ranks the places, as layers: how unsure the network is, what it predicts, and each branch alone."""

    uncertainty: Any = None
    prediction: Any = None
    branches: tuple[Any, Any] | None = None

    @property
    def words(self) -> str:
        """What the ranking goes by."""
        if self.uncertainty is not None:
            return "uncertainty"
        return "mixed prediction" if self.prediction is not None else "distance"


def find_guide(viewer: Any, image: Any) -> Guide:
    """The layers of the image of a layer that can rank places."""
    fitting = [layer for layer in viewer.layers if layer.ndim == 2 and getattr(layer, "data", None) is not None]
    fitting = [layer for layer in fitting if _is_raster(layer) and shape_of(layer) == shape_of(image)]
    fitting = [layer for layer in fitting if not is_of_another(viewer, layer, image)]
    labels = [layer for layer in fitting if layer.metadata.get(CLASSES)]
    unsure = [layer for layer in fitting if layer not in labels and "uncertain" in layer.name.lower()]
    shallow = next((layer for layer in labels if "shallow" in layer.name.lower()), None)
    deep = next((layer for layer in labels if "deep" in layer.name.lower()), None)
    plain = [layer for layer in labels if layer not in (shallow, deep)]
    both = None if shallow is None or deep is None else (shallow, deep)
    return Guide(unsure[-1] if unsure else None, plain[-1] if plain else None, both)


def _is_raster(layer: Any) -> bool:
    data = layer.data[0] if getattr(layer, "multiscale", False) else layer.data
    return len(getattr(data, "shape", ())) >= 2 and not isinstance(data, list)


def coarse_map(layer: Any, known_only: bool = False) -> Floats:
    """A layer at a level of at most 2048 pixels a side; 255 of a lazy layer is NaN.

    ``known_only``: take the overview that is there, and compute nothing.
    """
    levels = list(layer.data) if layer.multiscale else [layer.data]
    pyramid = pyramid_of(layer)
    at = next((k for k, level in enumerate(levels) if max(level.shape[:2]) <= MAP_SIDE), len(levels) - 1)
    if pyramid is None or known_only:
        values = np.asarray(levels[-1] if known_only else levels[at])
    else:
        values = pyramid.read(at, Window.whole(pyramid.shapes[at]))
    step = max(1, max(values.shape[:2]) // MAP_SIDE)
    result = values[::step, ::step].astype(np.float64)
    if pyramid is not None:
        result[result == IGNORE_INDEX] = np.nan
    return result


def mixed(labels: Floats) -> Floats:
    """1 where a pixel's class differs from its neighbours', NaN where nothing is predicted."""
    edges = np.zeros(labels.shape)
    edges[:-1] += labels[:-1] != labels[1:]
    edges[:, :-1] += labels[:, :-1] != labels[:, 1:]
    return np.where(np.isfinite(labels), np.minimum(edges, 1.0), np.nan)


def ranked(store: AnnotationStore, guide: Guide) -> list[Suggestion]:
    """The best places to annotate now, best first. Reads coarse levels only; runs on a worker thread."""
    side = place_side(store.shape)
    disagreement = None
    if guide.branches is not None:
        a, b = (coarse_map(layer, known_only=True) for layer in guide.branches)
        disagreement = np.where(np.isfinite(a) & np.isfinite(b), (a != b).astype(np.float64), np.nan)
    unsure: Floats = np.ones((1, 1))
    if guide.uncertainty is not None:
        unsure = coarse_map(guide.uncertainty)
    elif guide.prediction is not None:
        unsure = mixed(coarse_map(guide.prediction, known_only=True))
    found = next_regions(unsure, store, disagreement=disagreement, window=side, count=COUNT)
    return found or next_regions(np.ones((1, 1)), store, window=side, count=COUNT)


def why(suggestion: Suggestion, guide: Guide) -> str:
    """The reason for a place in words."""
    parts = []
    guided = guide.uncertainty is not None or guide.prediction is not None
    if guided and suggestion.trust < 0.5 and suggestion.typicality > suggestion.uncertainty:
        parts.append("an ordinary place, which teaches most while little is painted")
    elif guide.uncertainty is not None:
        parts.append(f"the network is unsure here ({suggestion.uncertainty:.0%} of its most unsure place)")
    elif guide.prediction is not None:
        parts.append(f"the prediction is mixed here ({suggestion.uncertainty:.0%} of its most mixed place)")
    if guide.branches is not None:
        parts.append(f"the branches disagree ({suggestion.disagreement:.0%})")
    far = suggestion.remoteness
    parts.append(
        "far from what is painted" if far > 0.6 else "near what is painted" if far < 0.3 else "not covered yet"
    )
    text = ", ".join(parts)
    tip = "" if len(parts) > 1 else " Segment the image, and places that the network finds hard come first."
    return text[0].upper() + text[1:] + "." + tip
