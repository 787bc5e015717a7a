"""Compare a label map of any size with truth, block by block: figures, areas and the worst windows."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.classes import IGNORE_INDEX, MAX_CLASSES, ClassInfo, folded
from napari_isdnet.engine.boundary import BoundaryScore
from napari_isdnet.engine.classlist import default_classes
from napari_isdnet.engine.evaluation import Evaluation
from napari_isdnet.engine.labels import LabelPair, open_labels, pair_labels, unchanged
from napari_isdnet.engine.metrics import ConfusionMatrix, Counts, check_ignored, pair_counts
from napari_isdnet.engine.worst import BlockErrors, WindowErrors, explained
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.prefetch import ahead
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window, region_of


def evaluate(
    prediction: ImageSource,
    truth: ImageSource,
    classes: Sequence[ClassInfo] | None = None,
    ignore: Iterable[int] = (),
    roi: Window | None = None,
    tolerance: float = 3.0,
    block: int = 2048,
    worst_size: int = 512,
    worst_count: int = 20,
    workers: int | None = None,
) -> Generator[Progress, None, Evaluation]:
    """Compare ``prediction`` with ``truth`` (both one channel of class indices, 255 = nodata) at level 0.

    Yields :class:`Progress`; the :class:`Evaluation` is the generator's return value. ``classes=None`` takes as many
    classes as the maps hold, named by index. ``ignore`` lists classes whose truth pixels are left out of everything;
    boundaries too near to what is left out are not judged (see :mod:`napari_isdnet.engine.boundary`).
    ``roi`` (level-0 pixels of the prediction) limits what is counted, not what its boundaries see, so that the counts
    of two regions add up to those of both. ``tolerance`` is that of the boundary F1, in pixels.

    Memory is bounded by ``workers`` blocks of ``block`` pixels square, whatever the size of the maps, and the block
    size changes no figure. Raises :class:`InputError` for maps of different size or grid, and for a value that is no
    class (named with its position).
    """
    if block < 1:
        raise InputError(f"The block must be at least 1 pixel, got {block}.")
    ignored = tuple(sorted({int(i) for i in ignore} - {IGNORE_INDEX}))
    limit = MAX_CLASSES if classes is None else len(classes)
    check_ignored(ignored, limit)
    pair = pair_labels(prediction, truth, ignored)
    region = pair.window if roi is None else pair.window.intersect(roi)
    if region.empty:
        raise InputError(f"The region {roi} holds no pixel that both maps cover; they share {pair.window}.")
    pairs: Counts = np.zeros((256, 256), np.int64)
    edge, errors = BoundaryScore(limit, tolerance), WindowErrors(prediction.shape, worst_size, limit)
    grid = Grid(prediction.shape, (block, block))
    cores = [grid[index].intersect(region) for index in grid.touching(region)]
    clock = Clock(float(region.area))
    workers = workers or min(4, os.cpu_count() or 1)
    for _, part in ahead(cores, lambda core: _compare(pair, core, limit, tolerance, errors), workers):
        pairs += part.pairs
        edge.merge(part.edge)
        errors.add(part.errors)
        yield clock.step(part.core.area, "Comparing", part.core, {"accuracy": _accuracy(pairs)})
    named = tuple(classes) if classes is not None else default_classes(_count_classes(pairs, ignored))
    matrix = ConfusionMatrix(len(named), ignored)
    matrix.add_pairs(pairs)
    worst = tuple(explained(pair, found, region) for found in errors.ranked(worst_count))
    return Evaluation(
        prediction=prediction.name,
        truth=truth.name,
        region=region,
        classes=named,
        confusion=matrix,
        boundary=_trimmed(edge, len(named)),
        pixel_size=_pixel_size(prediction, truth),
        worst=worst,
        worst_by_class=tuple(tuple(errors.ranked_of(k, worst_count)) for k in range(len(named))),
        notes=(*_notes(pair, matrix), *_black_and_white(pair, pairs)),
    )


@dataclass(frozen=True)
class _Part:
    core: Window
    pairs: Counts
    edge: BoundaryScore
    errors: BlockErrors


def _compare(pair: LabelPair, core: Window, limit: int, tolerance: float, errors: WindowErrors) -> _Part:
    """Count one block; ``errors`` is only asked where its counts go, never changed here."""
    edge = BoundaryScore(limit, tolerance)
    outer = core.expanded(edge.halo).intersect(pair.window)
    prediction, truth = pair.read(outer)
    inner = core.relative_to(outer)
    own_prediction, own_truth = prediction[inner.slices], truth[inner.slices]
    pairs = pair_counts(own_prediction, own_truth)
    for source, values, offset in ((pair.truth, truth, pair.offset), (pair.prediction, prediction, (0, 0))):
        _check_values(source.name, values, limit, outer.shifted(*offset))
    edge.update(prediction, truth, inner)
    return _Part(core, pairs, edge, errors.block(own_prediction, own_truth, core))


def _check_values(name: str, values: Any, limit: int, window: Window) -> None:
    wrong = (values >= limit) & (values != IGNORE_INDEX)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{name} holds {values[row, column]} at row {window.row + row}, column {window.column + column}; with"
            f" {limit} classes the allowed values are 0 to {limit - 1} and 255 for nodata: correct the map or give the"
            f" full list of classes."
        )


def _accuracy(pairs: Counts) -> float:
    known = pairs[:IGNORE_INDEX, :IGNORE_INDEX]
    return float(np.trace(known) / max(1, int(known.sum())))


def _count_classes(pairs: Counts, ignored: Sequence[int]) -> int:
    """Number of classes in maps that come without a list: one more than the largest index seen."""
    seen = np.flatnonzero((pairs.sum(axis=0) + pairs.sum(axis=1))[:IGNORE_INDEX])
    return max([int(v) for v in seen] + list(ignored), default=0) + 1


def _trimmed(edge: BoundaryScore, classes: int) -> BoundaryScore:
    result = BoundaryScore(classes, edge.tolerance)
    for name in ("predicted", "predicted_hit", "true", "true_hit"):
        setattr(result, name, getattr(edge, name)[:classes])
    return result


def _pixel_size(prediction: ImageSource, truth: ImageSource) -> PixelSize | None:
    return prediction.pixel_size or truth.pixel_size


def _notes(pair: LabelPair, matrix: ConfusionMatrix) -> tuple[str, ...]:
    notes = []
    whole = Window.whole(pair.prediction.shape)
    if pair.window != whole:
        share = pair.window.area / whole.area
        notes.append(f"Truth covers {share:.1%} of the prediction; only that part was compared.")
    if pair.window.area < pair.truth.shape[0] * pair.truth.shape[1]:
        notes.append("Truth reaches beyond the prediction; the part outside was not compared.")
    missing = int(matrix.unpredicted.sum())
    if missing:
        share = missing / (missing + matrix.evaluated)
        notes.append(f"{missing} pixels ({share:.2%}) have truth but no prediction (255); they are in no figure.")
    if not matrix.evaluated:
        notes.append("No pixel has both truth and a prediction, so there are no figures.")
    return tuple(notes)


def _black_and_white(pair: LabelPair, pairs: Counts) -> Iterator[str]:
    """A sentence for a map of 0 and 255 alone beside one with more classes: most likely a mask of black and white.

    Not for an annotation (``painted``), of which only the first class may be painted so far.
    """
    seen = [set(np.flatnonzero(pairs.sum(axis=axis)).tolist()) for axis in (0, 1)]  # of the prediction, of truth
    for source, own, other in zip((pair.prediction, pair.truth), seen, reversed(seen)):
        if own == {0, IGNORE_INDEX} and other - own and not getattr(source, "painted", False):
            yield (
                f"{source.name} holds only 0 and 255, and 255 is read as no data; if white is a class of it, save that"
                " as 1 and compare again."
            )


def _names_note(ours: Sequence[ClassInfo] | None, theirs: Sequence[ClassInfo] | None) -> str | None:
    """A sentence where the two maps name their classes differently; an error where they only order them otherwise."""
    if not ours or not theirs:
        return None
    mine, other = [c.name for c in ours], [c.name for c in theirs]
    ordered = [[folded(name) for name in names] for names in (mine, other)]
    if ordered[0] == ordered[1]:
        return None
    if sorted(ordered[0]) == sorted(ordered[1]):
        raise InputError(
            f"The prediction numbers its classes {', '.join(mine)} and truth {', '.join(other)}; bring one of them"
            f" into the other's order, or give --classes to compare the indices as they are."
        )
    return f"The maps name their classes differently ({', '.join(mine)}; truth: {', '.join(other)}): indices compared."


def evaluate_files(
    prediction: str | Path,
    truth: str | Path,
    classes_file: str | Path | None = None,
    ignore: Iterable[int] = (),
    output: str | Path | None = None,
    image: str | Path | None = None,
    tolerance: float = 3.0,
    roi: Window | None = None,
) -> Generator[Progress, None, Evaluation]:
    """:func:`evaluate` on two files; with ``output`` a folder with the report (over ``image``, if given) is written.

    Class names come from ``classes_file``, else from the metadata of the prediction or truth, else from the indices.
    Raises :class:`InputError` too where one of the maps was written meanwhile.
    """
    from napari_isdnet.engine.report import check_image, write_report
    from napari_isdnet.io.disk import make_folder
    from napari_isdnet.io.open import open_source

    ours, classes = open_labels(prediction, classes_file)
    theirs = picture = None
    try:
        region_of(roi, ours.shape, Path(prediction).name)
        theirs, other_classes = open_labels(truth)
        picture = None if image is None else open_source(image)
        note = None if classes_file is not None else _names_note(classes, other_classes)
        if output is not None:  # before the work, which may take hours
            check_image(picture, ours)
            make_folder(Path(output))
        with unchanged(prediction, ours), unchanged(truth, theirs):
            result = yield from evaluate(ours, theirs, classes or other_classes, ignore, roi, tolerance)
        result = replace(result, prediction=Path(prediction).name, truth=Path(truth).name)
        if note is not None:
            result = replace(result, notes=(*result.notes, note))
        if output is not None:
            write_report(result, ours, theirs, picture, output)
        return result
    finally:
        for source in (ours, theirs, picture):
            if source is not None:
                source.close()
