"""What napari calls to save a class map of ours: with names and colours, in the formats of the engine.

The layer is a lazy pyramid of any size, so what is written is the result on disk that it shows, window by window.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.vectors import WRITTEN
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._notify import in_dock
from napari_isdnet.widgets._segment_layers import STORE

if TYPE_CHECKING:
    from napari_isdnet.io.store import LabelStore

FORMATS = {
    ".geojson": "geojson",
    ".gpkg": "gpkg",
    ".ome.tif": "ome-tiff",
    ".ome.tiff": "ome-tiff",
    ".zarr": "ome-zarr",
    ".tif": "geotiff",
    ".tiff": "geotiff",
    ".png": "png",
}
NAPARIS = (".tif", ".tiff")
"""What napari writes of any labels itself."""


def write_class_map(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the finished class map that a labels layer shows to ``path``, in the format of its name (``FORMATS``).

    Returns the path. Raises :class:`RuntimeError` with one sentence for a layer that shows no finished result of this
    plugin and for what cannot be written: napari takes a ValueError for 'no plugin writes this' and says only that.
    """
    name = Path(path).name.lower()
    if STORE not in (meta.get("metadata") or {}) and name.endswith(NAPARIS) and ".ome." not in name:
        # Where this plugin was found before napari's own writers, it gets what is theirs.
        from npe2 import PluginManager

        written = PluginManager.instance().commands.execute("napari.write_labels", args=(path, data, meta))
        return [written] if written else []
    try:
        store, kind = _asked(Path(path), str(meta.get("name", "The layer")), meta.get("metadata") or {})
        _while_the_window_lives(_written(store, Path(path), kind), f"Saving {Path(path).name}")
    except InputError as error:
        raise RuntimeError(in_dock(str(error))) from error
    return [path]


def _asked(path: Path, name: str, metadata: dict[str, Any]) -> tuple[Path, str]:
    """The result that the layer shows, and the format of ``path``."""
    kind = next((kind for suffix, kind in FORMATS.items() if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise InputError(f"A class map is written as {', '.join(FORMATS)}; got '{path.name}'.")
    if STORE not in metadata:
        raise InputError(
            f"'{name}' shows no finished class map: use 'Segment to files' for a live one, Export of the Annotate dock"
            " for an annotation, or .tif for any other labels."
        )
    if path.is_dir():  # napari asks before it replaces a file only
        raise InputError(f"{path} exists; choose another name, or delete it first.")
    store = Path(metadata[STORE])
    if not store.exists():
        raise InputError(f"{store}, which the layer shows, is gone; segment the image again.")
    return store, kind


def write_result(
    store: LabelStore, path: Path, kind: str, simplify: float = 0.0, min_area: int = 1
) -> Generator[Progress, None, Path]:
    """Write a finished result to ``path`` in one of the engine's formats, or polygons ('geojson', 'gpkg'); replaces it.

    ``simplify`` and ``min_area`` are those of :func:`~napari_isdnet.io.vector.export_polygons`, in pixels.
    """
    if kind in WRITTEN:
        from napari_isdnet.io.vector import export_polygons

        return (yield from export_polygons(store, path, simplify=simplify, min_area=min_area, overwrite=True))
    from napari_isdnet.io.sink import export

    return (yield from export(store, path, kind, overwrite=True))


def _written(place: Path, path: Path, kind: str) -> Generator[Progress, None, Path]:
    from napari_isdnet.io.store import LabelStore

    store = LabelStore.open(place)
    try:
        return (yield from write_result(store, path, kind))
    finally:
        store.close()


def _while_the_window_lives(work: Generator[Progress, None, Path], title: str) -> None:
    """Run ``work``; where there is a viewer it answers meanwhile, and a bar in it shows how far that is and cancels."""
    import napari
    from qtpy.QtCore import QEventLoop

    from napari_isdnet.widgets._job import JobBar

    viewer = napari.current_viewer()
    if viewer is None:
        for _ in work:
            pass
        return
    loop, bar = QEventLoop(), JobBar(name="save")
    gone: list[Any] = []  # the window was closed in the middle
    results: list[Path] = []
    errors: list[BaseException] = []
    bar.ended.connect(loop.quit)
    bar.destroyed.connect(gone.append)
    bar.destroyed.connect(loop.quit)
    viewer.window.add_dock_widget(bar, name=title, area="bottom")
    bar.run(work, on_result=results.append, on_error=errors.append, title=title)
    loop.exec()
    if not gone:
        with suppress(LookupError):  # its cross was clicked, which takes the bar away and lets the work end
            viewer.window.remove_dock_widget(bar)
        bar.deleteLater()
    if errors:
        raise errors[0]
    if not results:
        raise InputError(f"{title} was stopped; nothing was written.")
