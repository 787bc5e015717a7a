"""Folders of this user: where models and what cannot lie beside an image are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "NAPARI_ISDNET_CACHE"


def cache_folder() -> Path:
    """The cache folder: the ``NAPARI_ISDNET_CACHE`` variable, or the platform's own place (not created here)."""
    chosen = os.environ.get(CACHE_VARIABLE)
    # The shell leaves a ~ as it is in NAME="~/x", and so do files of settings.
    return (
        Path(os.path.expanduser(chosen))
        if chosen
        else Path(platformdirs.user_cache_dir("napari-isdnet", appauthor=False))
    )


def user_models_folder() -> Path:
    """Where a user's own model files lie that may be called by their name alone."""
    return cache_folder() / "models"
