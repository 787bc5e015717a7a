"""``segment()``: one image, one model, one result on disk; the generator behind the command line and the widgets."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.engine.device import Placement, choose, peak_rss_bytes, working_bytes
from napari_isdnet.engine.differences import in_words, shown_otherwise
from napari_isdnet.engine.job import (
    Context,
    LedgerLog,
    Predictor,
    core_for,
    job_header,
    keep_means,
    known_means,
    make_predictor,
    picture_bytes,
)
from napari_isdnet.engine.ledger import JobDiffersError, Ledger, at_rest, read_header, recorded_units
from napari_isdnet.engine.orientations import orientations
from napari_isdnet.engine.outputs import STAGE, check_outputs, job_outputs
from napari_isdnet.engine.patches import check_size
from napari_isdnet.engine.results import ResultStores, Wanted, written
from napari_isdnet.engine.windowed import window_size
from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.cache import cache_within
from napari_isdnet.io.disk import make_folder
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.polygons import check_polygons
from napari_isdnet.io.sink import check_format, export
from napari_isdnet.io.source import ImageSource, TileError, resident_bytes, written_meanwhile
from napari_isdnet.io.units import length_text
from napari_isdnet.model.isdnet import MIN_SIDE
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window, region_of

if TYPE_CHECKING:
    from napari_isdnet.model.isdnet import ISDNet

PREPARE_SHARE, EXPORT_SHARE = 0.85, 0.03
#: An image whose pixels are so many times larger or smaller than those that a model was trained on shows other things.
FARTHEST = 16


@dataclass(frozen=True)
class SegmentResult:
    """Where the results are and what was measured.

    ``outputs`` maps a kind (``labels``, ``probabilities``, ``uncertainty``, ``polygons``, ``overlay``; with the format
    where there are several) to its path; ``pixels`` counts those of the result; ``seconds`` is this run's wall time;
    ``peak_rss_bytes`` that of the process; ``class_pixels`` counts every class; ``bad_windows`` what could not be read.
    """

    outputs: dict[str, str]
    pixels: int
    seconds: float
    pixels_per_second: float
    peak_rss_bytes: int
    device: str
    precision: str
    context: str
    class_pixels: dict[str, int] = field(default_factory=dict)
    bad_windows: list[tuple[int, int, int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class SegmentOptions:
    """What one job is asked to do; the meaning of each is that of the command line's option of the same name."""

    output: Path
    context: Context = "whole"
    window: int | None = None
    roi: Window | None = None
    formats: tuple[str, ...] = ("ome-zarr",)
    polygons: bool = False
    geopackage: bool = False
    simplify: float = 0.0
    min_area: int = 1
    probabilities: bool = False
    uncertainty: bool = False
    device: str = "auto"
    precision: str = "auto"
    memory: float | None = None
    contrast: Any = "auto"
    channels: Sequence[int] | None = None
    scale: float = 1.0
    orientations: int = 1
    skip_bad_tiles: bool = False
    resume: bool = True
    overwrite: bool = False
    dask: str | None = None

    def region(self, shape: tuple[int, int]) -> Window:
        """The part of an image of ``shape`` that is wanted."""
        return region_of(self.roi, shape)

    def wanted(self) -> Wanted:
        """Which stores are filled."""
        return Wanted(self.probabilities, self.uncertainty)


def segment(
    source: ImageSource | str | Path, model: ISDNet | str | Path, **options: Any
) -> Generator[Progress, None, SegmentResult]:
    """Segment an image into ``output`` (see :class:`SegmentOptions` for every keyword).

    Yields :class:`~napari_isdnet.progress.Progress` after every window; to cancel, stop asking and close the generator:
    what is done is kept in ``<output>/<stem>.job`` and the same call goes on from there. Returns a
    :class:`SegmentResult`. Raises :class:`~napari_isdnet.exceptions.InputError` for anything that the user can mend.
    """
    from napari_isdnet.io.open import open_source
    from napari_isdnet.io.scaled import resampled
    from napari_isdnet.model.checkpoint import load_model
    from napari_isdnet.model.isdnet import ISDNet

    settings = SegmentOptions(**{**options, "output": Path(options["output"])})
    with ExitStack() as stack:
        stack.enter_context(cache_within(working_bytes(settings.memory)))  # also of the tiles that percentiles are of
        if isinstance(source, str | Path):
            source = stack.enter_context(closing(open_source(source, memory=picture_bytes(settings.memory))))
        network = model if isinstance(model, ISDNet) else load_model(model)
        if network.header is None:
            raise InputError("This network was never trained (it has no header): load a model file.")
        scaled = resampled(source, float(settings.scale)) if float(settings.scale) != 1.0 else source
        if settings.dask is not None:
            from napari_isdnet.engine.cluster import segment_on_cluster

            return (yield from segment_on_cluster(scaled, network, settings))
        return (yield from _Job(scaled, network, settings).run())


class _Job:
    """One run of one job."""

    def __init__(self, source: ImageSource, model: ISDNet, options: SegmentOptions) -> None:
        from napari_isdnet.model.checkpoint import model_hash

        assert model.header is not None
        self.source, self.model, self.options = source, model, options
        self.header = model.header
        check_size(source.shape, MIN_SIDE)
        self.region = options.region(source.shape)
        orientations(options.orientations)  # or say what is allowed, before anything is written
        for name in options.formats:
            check_format(name, self.region.shape)
        if options.polygons or options.geopackage:
            check_polygons(options.simplify, options.min_area, options.geopackage)
        o = options
        self.paths = job_outputs(
            o.output, source.name, o.formats, o.probabilities, o.uncertainty, o.polygons, o.geopackage
        )
        self.policy = IntensityPolicy.from_source(source, options.contrast, options.channels)
        self.placement = self.place()
        self.job_folder = options.output / f"{source.name}.job"
        self.core = self._core()
        self.identity = job_header(
            source,
            model_hash(model),
            self.placement,
            {
                "context": options.context,
                **self._windows(),
                "roi": None if options.roi is None else list(vars(options.roi).values()),
                "intensity": self.policy.to_dict(),
                "scale": float(options.scale),
                "probabilities": options.probabilities,
                "uncertainty": options.uncertainty,
                # Left out where there is one, so that jobs begun before there were several still go on.
                **({"orientations": options.orientations} if options.orientations != 1 else {}),
                "skip_bad_tiles": options.skip_bad_tiles and not self._begun_without_skipping(),
            },
        )
        self.warnings = self._warnings()
        self._started = time.monotonic()

    def place(self) -> Placement:
        """Where and in which arithmetic the network runs."""
        return choose(self.options.device, self.options.precision)

    def _begun_without_skipping(self) -> bool:
        """A job that met a bad tile says to use --skip-bad-tiles: what it has done before stays good then."""
        keep = self.options.resume and not self.options.overwrite
        return keep and (self._earlier() or {}).get("skip_bad_tiles") is False

    def _earlier(self) -> dict[str, Any] | None:
        """The header of the job that is there; None for one that cannot be read where it may be thrown away."""
        try:
            return read_header(self.job_folder)
        except InputError:
            if self.options.resume and not self.options.overwrite:
                raise
            return None

    def _core(self) -> int:
        """Side of the streaming cores: as asked, else what the memory allows, or less where the job was begun so."""
        o = self.options
        stored, resident = len(self.policy.needed) * self.source.dtype.itemsize, resident_bytes(self.source)
        budget = working_bytes(o.memory)
        fits = core_for(budget, self.source.shape, o.window, stored=stored, resident=resident)
        if o.window is None and o.resume and o.context == "whole":
            begun = (self._earlier() or {}).get("core")
            if isinstance(begun, int) and 0 < begun < fits:
                return begun
        return fits

    def _windows(self) -> dict[str, int]:
        """The size that a resumed job must keep: cores change the result by rounding only, but bytes show it."""
        if self.options.context == "whole":
            return {"core": self.core}
        return {"window": window_size(self.model, self.options.window)}

    def _warnings(self) -> list[str]:
        return [text for text in (self._other_size(), shown_otherwise(self.source, self.policy, self.header)) if text]

    def _other_size(self) -> str | None:
        size, trained = self.source.pixel_size, self.header.pixel_size
        metres = None if size is None else size.metres
        scale = float(self.options.scale)
        if metres is None or trained is None or 1 / 1.5 <= metres / trained <= 1.5:
            return None
        now = "" if scale == 1 else f", {length_text(metres)} at --scale {scale:g}"
        metres *= scale  # of the file, which is what --scale counts from
        seen = f"The image has pixels of {length_text(metres)}{now}, the model was trained at {length_text(trained)}"
        if not 1 / FARTHEST <= metres / trained <= FARTHEST:
            return f"{seen}: it has never seen anything like it, and resampling does not help."
        return f"{seen}; --scale {metres / trained:.3g} resamples it."

    # ------------------------------------------------------------------ steps

    def run(self) -> Generator[Progress, None, SegmentResult]:
        """All steps, each going on where an earlier run stopped."""
        o = self.options
        make_folder(o.output)
        self._check_outputs()
        with self._ledger() as ledger, ExitStack() as stack:
            for _, _, path in self.paths.values():
                if path.exists():  # of an earlier run, or to be overwritten; in a new ledger nothing says so any more
                    _own(ledger, path)
            stores = stack.enter_context(
                ResultStores.open(self.job_folder, self.source, self.region, self.header.classes, o.wanted())
            )
            if stores.missing():
                with closing(self._predictor(ledger)) as predictor:  # Windows removes no maps that are open
                    yield from self._prepare(predictor)
                    yield from self._fill(predictor, stores, ledger)
            bad = _bad_windows(ledger)
            yield from self._finish(stores, ledger)
            self._drop_maps()
            return self._result(stores, bad)

    def _check_outputs(self) -> None:
        try:
            check_outputs(self.paths, self.source, recorded_units(self.job_folder, STAGE), self.options.overwrite)
        except AlreadyThere:
            with at_rest(self.job_folder):  # who begins it anew has yet to note again which results are its own
                own = recorded_units(self.job_folder, STAGE)
                check_outputs(self.paths, self.source, own, self.options.overwrite)

    def _ledger(self) -> AbstractContextManager[Ledger]:
        o, name = self.options, self.header.name
        try:
            return Ledger.open(self.job_folder, self.identity, o.resume, o.overwrite, {"model": name})
        except JobDiffersError as error:
            raise in_words(error, self.job_folder, name) from None

    def _predictor(self, ledger: Ledger) -> Predictor:
        o = self.options
        return make_predictor(
            self.model,
            self.source,
            self.policy,
            self.placement,
            context=o.context,
            window=self.core if o.context == "whole" else o.window,
            memory=o.memory,
            folder=self.job_folder / "maps",
            log=LedgerLog(ledger),
            means=known_means(self.identity, o.orientations) if o.roi is not None else (),
            skip_bad_tiles=o.skip_bad_tiles,
            orientations=o.orientations,
        )

    def _prepare(self, predictor: Predictor) -> Generator[Progress, None, None]:
        known = predictor.prepared
        for step in predictor.prepare():
            yield step.within(0.0, PREPARE_SHARE)
        if not known and not self.options.skip_bad_tiles:
            keep_means(self.identity, predictor)
            keep_means({k: v for k, v in self.identity.items() if k != "core"}, predictor)

    def _fill(self, predictor: Predictor, stores: ResultStores, ledger: Ledger) -> Generator[Progress, None, None]:
        start = PREPARE_SHARE if self.options.context == "whole" else 0.0
        todo, total = stores.missing(), len(stores.labels.shards)
        clock = Clock(total, total - len(todo))
        for _, window in written(todo, stores, predictor, ledger):
            step = clock.step(1, "write", window.shifted(self.region.row, self.region.column))
            yield step.within(start, 1 - EXPORT_SHARE - start)

    def _finish(self, stores: ResultStores, ledger: Ledger) -> Generator[Progress, None, None]:
        base, span = 1 - EXPORT_SHARE, EXPORT_SHARE / (2 + len(self.paths))
        for step in stores.finish():
            yield step.within(base, 2 * span)
        for number, (key, (kind, name, path)) in enumerate(list(self.paths.items())):
            # Once more: somebody may have put a file there since the job began.
            check_outputs({key: self.paths[key]}, self.source, ledger.units(STAGE), self.options.overwrite)
            _own(ledger, path)
            steps = self._export(stores, kind, name, path)
            for step in steps:
                yield step.within(base + (2 + number) * span, span)

    def _export(self, stores: ResultStores, kind: str, name: str, path: Path) -> Generator[Progress, None, Path]:
        if kind in ("polygons", "geopackage"):
            from napari_isdnet.io.vector import export_polygons

            pixels = getattr(self.source, "pixels", (1.0, 1.0))  # of the file, where it was resampled
            o = self.options
            return export_polygons(
                stores.labels, path, pixels=pixels, simplify=o.simplify, min_area=o.min_area, overwrite=True
            )
        if kind == "overlay":
            return self._overlay(stores, path)
        return export(stores.of(kind), path, name, overwrite=True)

    def _overlay(self, stores: ResultStores, path: Path) -> Generator[Progress, None, Path]:
        """The picture to look at: the image, small, with its classes in colour."""
        from napari_isdnet.io.overlay import write_overlay

        try:
            write_overlay(
                self.source,
                lambda raw: self.policy.of_needed().apply(raw)[0],
                stores.labels,
                path,
                self.header.classes,
                self.region,
                channels=self.policy.needed,
            )
        except TileError:
            if not self.options.skip_bad_tiles:
                raise
            self.warnings.append(f"No overlay was written: {self.source.name} cannot be read everywhere.")
            del self.paths["overlay"]
        yield Progress(1.0, 1.0, "overlay", self.region)
        return path

    def _drop_maps(self) -> None:
        from napari_isdnet.io.disk import remove

        remove(self.job_folder / "maps")

    def _result(self, stores: ResultStores, bad: list[tuple[int, int, int, int]]) -> SegmentResult:
        name = self.source.name
        if bad:
            self.warnings.append(f"{len(bad)} windows of {name} could not be read and are nodata in the result.")
        if written_meanwhile(self.source):
            self.warnings.append(
                f"{name} was written by another program while it was segmented, so the result may mix two states of it:"
                " segment it anew if its pixels changed."
            )
        seconds = time.monotonic() - self._started
        pixels = self.region.area
        return SegmentResult(
            outputs={key: str(path) for key, (_, _, path) in self.paths.items()},
            pixels=pixels,
            seconds=seconds,
            pixels_per_second=pixels / max(seconds, 1e-9),
            peak_rss_bytes=peak_rss_bytes(),
            device=str(self.placement.device),
            precision=self.placement.precision,
            context=self.options.context,
            class_pixels=stores.class_pixels(),
            bad_windows=bad,
            warnings=self.warnings,
        )


def _own(ledger: Ledger, path: Path) -> None:
    """Note that a result is the job's; before it is written, since a kill in between must not orphan it."""
    if not ledger.done(STAGE, path.name):
        ledger.record(STAGE, path.name)


def _bad_windows(ledger: Ledger) -> list[tuple[int, int, int, int]]:
    """Where the image could not be read, of this run and those before it."""
    found: set[tuple[int, int, int, int]] = set()
    for index in ledger.units("bad"):
        found.update((int(r), int(c), int(h), int(w)) for r, c, h, w in ledger.payload("bad", index)["windows"])
    return sorted(found)
