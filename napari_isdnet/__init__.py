"""napari-isdnet: ultra-high-resolution semantic segmentation with ISDNet, whole images of any size.

Importing this package imports neither torch nor napari; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from napari_isdnet.engine.segment import segment
    from napari_isdnet.io.open import open_source
    from napari_isdnet.model.checkpoint import load_model
    from napari_isdnet.model.isdnet import ISDNet
    from napari_isdnet.progress import result_of

_LAZY = {
    "ISDNet": "napari_isdnet.model.isdnet",
    "load_model": "napari_isdnet.model.checkpoint",
    "open_source": "napari_isdnet.io.open",
    "result_of": "napari_isdnet.progress",
    "segment": "napari_isdnet.engine.segment",
}

__all__ = ["ISDNet", "load_model", "open_source", "result_of", "segment"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
