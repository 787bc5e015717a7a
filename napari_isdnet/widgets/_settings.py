"""The plugin's page in napari's preferences (device, cache folder, memory), with defaults where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError
from napari_isdnet.paths import cache_folder as default_cache_folder
from napari_isdnet.widgets._notify import notify_error

PLUGIN = "napari-isdnet"


def setting(key: str, default: Any) -> Any:
    """A value of the preferences page; ``default`` with a napari that has no such page, or does not know the plugin.

    A page that cannot be read (a damaged file, say) is said once; the docks go on with their defaults.
    """
    try:
        from napari.settings import get_plugin_settings  # napari 0.9 and later
    except ImportError:
        return default
    try:
        return getattr(get_plugin_settings(PLUGIN).general, key, default)
    except KeyError:  # the manifest is not there: a dock made by a script
        return default
    except Exception as error:  # napari's own, of any type
        _say_once(f"The preferences of {PLUGIN} cannot be read ({type(error).__name__}: {error}); using the defaults.")
        return default


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        notify_error(InputError(" ".join(message.split())))


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
