"""The plugin's page in napari's preferences (device, cache folder, memory), with defaults where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_isdnet.paths import cache_folder as default_cache_folder

PLUGIN = "napari-isdnet"


def setting(key: str, default: Any) -> Any:
    """A value of the preferences page; ``default`` with a napari that has no such page, or before it was opened."""
    try:
        from napari.settings import get_plugin_settings  # napari 0.9 and later

        return getattr(get_plugin_settings(PLUGIN).general, key, default)
    except Exception:  # the page is a convenience: whatever is wrong with it must not stop the widgets
        return default


def cache_folder() -> Path:
    """Where pyramids and models are kept."""
    chosen = str(setting("cache_folder", "") or "").strip()
    return Path(chosen).expanduser() if chosen else default_cache_folder()


def pyramid_folder() -> Path:
    """Where pyramids of images whose files have none are kept."""
    return cache_folder() / "pyramids"


def device() -> str:
    """'auto', 'cpu', 'cuda' or 'mps'."""
    return str(setting("device", "auto") or "auto")


def memory_gib() -> float | None:
    """Memory budget in GiB, None for 'a quarter of the machine's'."""
    value = float(setting("memory", 0) or 0)
    return value if value > 0 else None
