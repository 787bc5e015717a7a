"""The bodies of ``napari-isdnet annotation``; each returns JSON-ready facts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.layout import JOURNAL, store_folder
from napari_isdnet.annotation.moment import NeverStill, at_one_moment
from napari_isdnet.annotation.project import ENDING, Project, project_folder
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.suggest import Suggestion, Unpainted, next_regions
from napari_isdnet.cli_output import drive, print_table
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference, ImageSource, quick_identity

_TRIES = 8  # an export may take long


def describe(image: Path) -> dict[str, Any]:
    """What is painted, and the models that were trained with it."""
    with _found(image) as (folder, source):
        return at_one_moment(folder, lambda: _described(folder, source))


def _described(folder: Path, source: ImageSource | None) -> dict[str, Any]:
    import time

    with Project.open(source or folder, read_only=True) as project:
        store = project.store
        said = _other_image(project, source)
        strokes = sum(store.journal.entry(n)["kind"] != "classes" for n in store.journal.done)
        return {
            "project": str(project.folder),
            "shape": list(store.shape),
            "position": store.position,
            "strokes": strokes,
            "classes": [
                {"name": c.name, "color": list(c.color), "pixels": n}
                for c, n in zip(store.classes, store.class_counts(), strict=True)
            ],
            "models": [
                {"id": m.id, "name": m.name, "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(m.time))}
                for m in project.history()
            ],
        } | ({"note": said} if said else {})


def _other_image(project: Project, source: ImageSource | None) -> str:
    """What is to be said of an image that is not what it was; '' also where it is gone."""
    from napari_isdnet.io.open import open_source

    path = _image_of(project) if source is None else None
    try:
        if path is not None:
            with closing(open_source(path)) as opened:
                return project.other_image(opened)
    except InputError:  # who wants to know what is painted need not be able to read it
        pass
    return "" if source is None else project.other_image(source)


def _image_of(project: Project) -> Path | None:
    """The image beside a project, else where it was; None where it is gone."""
    beside = project.folder.with_name(project.folder.name.removesuffix(ENDING))
    paths = (beside, Path(project.image.get("path") or beside))
    return next((path for path in paths if path != project.folder and path.exists()), None)


def bring(
    image: Path,
    file: Path,
    values: str,
    default_class: str,
    classes: Path | None,
    layer: str | None = None,
    attribute: str | None = None,
) -> dict[str, Any]:
    """Paint a file over the annotation of an image."""
    from napari_isdnet.annotation.files import bring_in, check_meant, holds_outlines
    from napari_isdnet.engine.labels import open_labels, read_classes

    if not file.exists():
        raise InputError(f"{file} does not exist; give a file of outlines or a label image.")
    outlines = holds_outlines(file)
    check_meant(file, layer, attribute)
    names = None if classes is None else read_classes(classes)
    known: Sequence[Any] = names or ()
    if not known and not outlines:
        labels, own = open_labels(file)
        labels.close()
        known = own or ()
    with (
        _found(image) as (folder, opened),
        _leaving_nothing(folder),
        _opened(folder, opened, known, read_only=False) as (project, source),
    ):
        assert project is not None
        before = project.store.class_counts()
        reference = None if source is None else source.georeference
        steps = bring_in(project.store, file, values, default_class, reference, names, layer, attribute)
        said = drive(steps, file.name, "Interrupted; what was painted until then is one step to undo in napari.")
        project.store.flush()
        counts = project.store.class_counts()
        gained = {c.name: n for c, n in zip(project.store.classes, counts, strict=True)}
        facts = {"project": str(project.folder), "painted_before": sum(before), "pixels": gained}
        return facts | ({"note": said} if said else {})


def take_out(image: Path, output: Path, values: str, placed: bool, overwrite: bool) -> dict[str, Any]:
    """Write the annotation of an image to a file."""
    from napari_isdnet.annotation.files import kind_of, write_out
    from napari_isdnet.io.vectors import WRITTEN

    kind = kind_of(output)
    if values == "annotation" and kind in WRITTEN:
        raise InputError("Outlines carry class names, not values; leave --values out, or write a label file.")
    if values == "annotation" and kind not in ("ome-tiff", "geotiff"):
        raise InputError(
            f"Annotation values (0 = unlabelled) are written to *.tif and *.ome.tif only, got '{output.name}'; use"
            " --values mask."
        )
    tried: list[Path] = []

    def export() -> dict[str, Any]:
        with _opened(folder, opened) as (project, source):
            assert project is not None
            reference, again = _placed(source, image) if placed else None, bool(tried)
            steps = write_out(
                project.store, output, kind, source, values=values, georeference=reference, overwrite=overwrite or again
            )
            drive(steps, output.name, "Interrupted; nothing was written.")
            tried.append(output)
            return {"output": str(output), "format": kind, "pixels": sum(project.store.class_counts())}

    try:
        with _found(image) as (folder, opened):
            return at_one_moment(folder, export, _TRIES)
    except NeverStill:
        raise InputError(
            f"{image} is painted by another program faster than it can be exported; stop painting for a moment, or"
            " export there." + (" What was written is of several moments: do not use it." if tried else "")
        ) from None


def mend(image: Path) -> dict[str, Any]:
    """Make chunks, counts and undo of an annotation anew from its journal."""
    with _found(image) as (folder, source):
        if not (folder / JOURNAL).is_file():
            Project.open(source or folder, read_only=True).close()  # which says that there is none
    with AnnotationStore.open(folder, rebuild=True) as store:
        counts = store.class_counts()
        return {"project": str(folder), "pixels": {c.name: n for c, n in zip(store.classes, counts, strict=True)}}


def places(
    image: Path, uncertainty: Path | None, hardest: bool, window: int | None, count: int, output: Path | None,
    placed: bool, overwrite: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The next places to paint, best first; to ``output`` as GeoJSON too."""
    with _found(image) as (folder, opened):

        def look() -> tuple[Sequence[Suggestion], GeoReference | None]:
            with _opened(folder, opened, needed=False) as (project, source):
                reference = _placed(source, image) if placed else None
                if project is not None:
                    store: AnnotationStore | Unpainted = project.store
                else:
                    assert source is not None
                    store = Unpainted(source.shape)
                return _next_places(store, uncertainty, hardest, window, count), reference

        found, reference = at_one_moment(folder, look)
    if output is not None:
        _write_places(found, output, reference, overwrite)
    return [
        {"row": s.window.row, "column": s.window.column, "height": s.window.height, "width": s.window.width}
        | {"score": round(s.score, 4), "remoteness": round(s.remoteness, 4)}
        | ({} if uncertainty is None else {"uncertainty": round(s.uncertainty, 4)})
        for s in found
    ]


def _next_places(
    store: AnnotationStore | Unpainted, uncertainty: Path | None, hardest: bool, window: int | None, count: int
) -> Sequence[Suggestion]:
    import numpy as np

    from napari_isdnet.annotation.suggest import TRUST_FROM, place_side
    from napari_isdnet.engine.kinds import check_uncertainty
    from napari_isdnet.io.open import open_source

    with ExitStack() as stack:
        unsure: Any = np.ones((1, 1))
        if uncertainty is not None:
            unsure = stack.enter_context(closing(open_source(uncertainty)))
            check_uncertainty(uncertainty, unsure)
        side = window or place_side(store.shape)
        return next_regions(unsure, store, window=side, count=count, trust_from=0.0 if hardest else TRUST_FROM)


def show_places(found: Sequence[dict[str, Any]]) -> None:
    """As a table."""
    rows = [(str(n), *map(str, place.values())) for n, place in enumerate(found, 1)]
    print_table("Where to paint next, best first (pixels of the image)", ("place", *(found[0] if found else ())), rows)


def _write_places(found: Sequence[Suggestion], path: Path, reference: GeoReference | None, overwrite: bool) -> None:
    import shapely

    from napari_isdnet.classes import ClassInfo
    from napari_isdnet.io.disk import replacing
    from napari_isdnet.io.vector import polygon_writer

    names = [ClassInfo(f"place {n}", (255, 215, 0)) for n in range(1, len(found) + 1)]
    with replacing(path, overwrite) as temporary, polygon_writer(temporary, names, reference) as writer:
        for index, one in enumerate(found):
            w = one.window
            box = shapely.box(w.column, w.row, w.right, w.bottom)
            writer.add(index, box, box)


@contextmanager
def _leaving_nothing(folder: Path) -> Iterator[None]:
    """Takes away the project that was made inside in ``folder`` when that fails before anything is painted."""
    if folder.exists():
        yield
        return
    try:
        yield
    except BaseException:
        if (folder / JOURNAL).is_file():
            with Project.open(folder, read_only=True) as project:
                empty = not any(project.store.class_counts())
            if empty:
                shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _found(image: Path) -> Iterator[tuple[Path, ImageSource | None]]:
    """The project of an image, there or not yet, and the image, open; None of it where ``image`` is the project."""
    from napari_isdnet.io.open import open_source

    folder = store_folder(image)
    if (folder / JOURNAL).is_file() or folder.suffix == ENDING:
        yield folder, None
        return
    with closing(open_source(image)) as source:
        yield project_folder(image, quick_identity(source)), source


@contextmanager
def _opened(
    folder: Path, source: ImageSource | None, classes: Sequence[Any] = (), *, read_only: bool = True,
    needed: bool = True,
) -> Iterator[tuple[Project | None, ImageSource | None]]:  # fmt: skip
    """What was :func:`_found`: the project, and the image, which may be gone where the project was asked for.

    No project where there is none yet and it is not ``needed``.
    """
    from napari_isdnet.io.open import open_source

    with ExitStack() as stack:
        if source is None:
            project = stack.enter_context(Project.open(folder, read_only=read_only))
            path = _image_of(project)
            yield project, None if path is None else stack.enter_context(closing(open_source(path)))
        elif not needed and not (folder / JOURNAL).is_file():
            yield None, source
        else:
            yield stack.enter_context(Project.open(source, classes, read_only=read_only)), source


def _placed(source: ImageSource | None, image: Path) -> GeoReference:
    """Where the image lies on the earth; refused where it does not say so."""
    if source is None or source.georeference is None:
        raise InputError(f"{image} has no position on the earth; leave --map out to get pixels.")
    return source.georeference
