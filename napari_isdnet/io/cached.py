"""The cache folder, and the coarse levels kept in it for images that have none."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

from napari_isdnet.io.overviews import build_overviews, with_overviews
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress


def cache_folder() -> Path:
    """Where derived files are kept: ``NAPARI_ISDNET_CACHE``, else ``napari-isdnet`` in the user's cache folder."""
    chosen = os.environ.get("NAPARI_ISDNET_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "napari-isdnet" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME")
    standard = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (Path(base) if base else standard) / "napari-isdnet"


def build_pyramid(source: ImageSource, folder: Path | None = None) -> Generator[Progress, None, Path]:
    """Write the coarse levels of ``source`` once (default: cache folder); yields progress, returns the path."""
    return (yield from build_overviews(source, folder or cache_folder() / "overviews"))


def with_pyramid(source: ImageSource, folder: Path | None = None) -> ImageSource:
    """``source`` with its coarse levels where it needs them and :func:`build_pyramid` has written them, else itself."""
    return with_overviews(source, folder or cache_folder() / "overviews")
