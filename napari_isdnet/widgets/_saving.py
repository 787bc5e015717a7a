"""What napari's own writers get of a layer of ours: all its pixels, or one sentence that says how to save it.

napari asks the levels of a multiscale layer for one array, and takes the coarsest level, or fails with a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from napari.layers._multiscale_data import MultiScaleData

from napari_isdnet.annotation.level import LARGEST_ARRAY, AnnotationLevel
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._image import ANNOTATION, ERRORS, METADATA, source_of
from napari_isdnet.widgets._lazy import LazyLevel, ReadLevel
from napari_isdnet.widgets._segment_layers import CLASSES, STORE

MOST_WHOLE = 2**28
"""Values that are read at once, on the main thread, for napari's own writer."""
FINISHED_AS = "Choose 'Class map of ISDNet' as the file type, or a name that ends in .ome.tif, .png or .ome.zarr."
LIVE_AS = "This class map is computed where one looks; use 'Segment to files' of the Segment dock to have all of it."
PAINTED_AS = "This annotation is too large for one array; use Export of the Annotate dock."
ERRORS_AS = "This error map is computed where one looks; use 'Export report' of the Errors dock."
COMPUTED_AS = "This layer is computed where one looks and cannot be saved; save a screenshot of it instead."
IMAGE_AS = "This layer has too many pixels for one array; what it shows lies in the file that was opened."


class WholeOrWords(MultiScaleData):
    """Levels of a layer for napari's own writers: all values of level 0 where there are at most ``most``.

    Else, and where ``most`` is 0, the error is ``sentence``.
    """

    def __init__(self, levels: Sequence[Any], most: int, sentence: str) -> None:
        super().__init__(levels)
        self._most, self._sentence = most, sentence

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self.size > min(self._most, MOST_WHOLE):
            raise RuntimeError(self._sentence)  # of a ValueError napari says that no plugin writes this
        finest: Any = self._data[0]
        try:
            whole = ReadLevel(finest)[:, :] if isinstance(finest, LazyLevel) else np.asarray(finest)
        except InputError as error:
            raise RuntimeError(str(error)) from error
        return whole if dtype is None else whole.astype(dtype)


def shield(layer: Any) -> None:
    """Give a layer of ours, or a copy of one, its :class:`WholeOrWords`; leaves any other layer alone.

    napari's own tools cannot paint into our labels either, and a copy does not know that by itself.
    """
    data: Any = getattr(layer, "data", None)
    finest = data[0] if getattr(layer, "multiscale", False) else data
    if not isinstance(finest, LazyLevel | AnnotationLevel):
        return
    if isinstance(layer, Labels):
        layer.editable = False
    if layer.multiscale and not isinstance(layer._data, WholeOrWords):
        layer._data = WholeOrWords(list(data), *_most_and_words(layer, finest))


def _most_and_words(layer: Any, finest: Any) -> tuple[int, str]:
    known = layer.metadata.get(METADATA, {})
    if isinstance(finest, AnnotationLevel) or ANNOTATION in known:
        return LARGEST_ARRAY, PAINTED_AS
    if ERRORS in known:
        return 0, ERRORS_AS
    if known.get("path") and isinstance(layer, Labels):
        return MOST_WHOLE, IMAGE_AS
    if CLASSES in layer.metadata and STORE not in layer.metadata:
        return 0, LIVE_AS
    if STORE in layer.metadata:
        return MOST_WHOLE, FINISHED_AS if isinstance(layer, Labels) else IMAGE_AS
    return (MOST_WHOLE, IMAGE_AS) if source_of(layer) is not None else (0, COMPUTED_AS)
