"""One job on many processes or machines: units of work as futures of ``dask.distributed``.

The client keeps the ledger, sends units out and takes back their partial sums; at a barrier it reduces them in unit
order, as a job without a cluster does, so that the result is the same to the byte on the same kind of device. Workers
read the image themselves and write maps and result shards themselves; only sums travel. The output folder and the
image must be visible to every worker under the same path.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import torch

from napari_isdnet.engine import cluster_worker as remote
from napari_isdnet.engine.device import PRECISIONS, Placement, machine_memory, prepare
from napari_isdnet.engine.halo import NotLocalError
from napari_isdnet.engine.job import LedgerLog, Predictor, known_means, part_folder
from napari_isdnet.engine.ledger import Ledger
from napari_isdnet.engine.maps import LazyMap
from napari_isdnet.engine.orientations import Oriented, Part, orientations, turned
from napari_isdnet.engine.patches import Patches, PatchReader
from napari_isdnet.engine.results import ResultStores
from napari_isdnet.engine.segment import EXPORT_SHARE, PREPARE_SHARE, SegmentOptions, SegmentResult, _Job
from napari_isdnet.engine.streaming import SHARES, StreamOptions, WholeImage
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.scaled import ScaledSource
from napari_isdnet.io.source import ImageSource, quick_identity
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid

if TYPE_CHECKING:
    from napari_isdnet.model.isdnet import ISDNet

RETRIES = 2
WORKER_MEMORY = 3 * 2**30
"""Memory that a local worker is counted with when the cluster is sized."""
MOST_SENT = 8 * 2**20
CONNECT_SECONDS = 20
CLOSE_SECONDS = 5
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]@]+):(\d{1,5})/?")


def segment_on_cluster(
    source: ImageSource, model: ISDNet, options: SegmentOptions
) -> Generator[Progress, None, SegmentResult]:
    """:func:`~napari_isdnet.engine.segment.segment` with its units computed by the workers of ``options.dask``.

    ``options.dask`` is the address of a scheduler, or ``local`` for processes on this machine. A unit that fails is
    tried ``RETRIES`` more times; then the job stops with one sentence, and goes on from there when run again.
    """
    assert options.dask is not None
    check_address(options.dask)
    yield Progress(0.0, 1.0, "starting workers")
    with connect(options.dask) as client:
        placement = agreed(client, options)
        return (yield from _ClusterJob(source, model, options, client, placement).run())


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """A client of the scheduler at ``address``, or of processes started here for ``local``; closed at the end.

    Raises :class:`InputError` for an address of another form, and where no scheduler answers.
    """
    check_address(address)
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("--dask", "dask.distributed", "dask") from error
    if address == "local":
        count, threads = local_size()
        with deaf():
            cluster = distributed.LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=count, threads_per_worker=1, processes=True, memory_limit=0,
                # Without a dashboard there is a web server still: on a free port, and for this machine alone.
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                # What fails is said by the job in a sentence; what is ended in the middle of it is no fault.
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
        with (
            cluster,
            distributed.Client(cluster, set_as_default=False) as client,  # type: ignore[no-untyped-call]
        ):
            client.wait_for_workers(count)
            client.isdnet_threads = threads
            yield client
        return
    try:
        client = _client(address)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"No Dask scheduler answers at '{address}' ({error or type(error).__name__}); give an address such as"
            " tcp://HOST:8786, or --dask local."
        ) from error
    with client:
        client.isdnet_threads = None  # type: ignore[attr-defined]
        yield client


@contextmanager
def deaf() -> Iterator[None]:
    """Processes and threads that are started within get no Ctrl-C: who starts them answers it, and ends them.

    One that comes meanwhile takes effect at the end.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # as it begins, it makes the thread hear again that starts the first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_address(address: str) -> None:
    """Raise :class:`InputError` unless ``address`` is ``local`` or HOST:PORT, with or without a scheme."""
    found = _ADDRESS.fullmatch(address)
    if address != "local" and not (found and 0 < int(found[1]) < 65536):
        raise InputError(
            f"'{address}' is no address of a Dask scheduler; give HOST:PORT such as tcp://HOST:8786, or --dask local."
        )


def _client(address: str) -> Any:
    """A client that is connected; one that cannot connect is closed at once, or it would wait for itself at exit."""
    import distributed

    class Client(distributed.Client):
        def __init__(self) -> None:
            try:
                super().__init__(  # type: ignore[no-untyped-call]
                    address, timeout=CONNECT_SECONDS, set_as_default=False
                )
            except BaseException:
                with suppress(Exception):  # what went wrong first is what is said
                    self.close(timeout=CLOSE_SECONDS)  # type: ignore[no-untyped-call]
                raise

    return Client()


def local_size() -> tuple[int, int]:
    """(workers, torch threads of each) that fit this machine: one graphics card or core each, as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return torch.cuda.device_count(), max(1, cores // torch.cuda.device_count())
    count = max(1, min(cores, machine_memory() // WORKER_MEMORY))
    return count, max(1, cores // count)


def agreed(client: Any, options: SegmentOptions) -> Placement:
    """The device and precision that every worker chooses; results would depend on the schedule if they differed."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise InputError(f"The Dask cluster at {options.dask} has no workers; start some with 'dask worker'.") from None
    choices = set(client.run(remote.probe, options.device, options.precision, client.isdnet_threads).values())
    errors = [error for _, _, error in choices if error]
    if errors:
        raise InputError(f"A worker cannot do this: {errors[0]}")
    if len(choices) > 1:
        found = ", ".join(sorted(f"{precision} on {device}" for device, precision, _ in choices))
        raise InputError(
            f"The workers would compute differently ({found}), which would mix results; give --device and --precision."
        )
    device, precision, _ = choices.pop()
    return Placement(torch.device(device), PRECISIONS[precision])


class _ClusterJob(_Job):
    """A job whose maps and shards are made by workers; everything else happens here, as without a cluster."""

    def __init__(
        self, source: ImageSource, model: ISDNet, options: SegmentOptions, client: Any, placement: Placement
    ) -> None:
        self._client, self._agreed = client, placement
        super().__init__(source, model, options)
        self._recipe: remote.Recipe | None = None

    def place(self) -> Placement:
        """As the workers choose."""
        return self._agreed

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        """As without a cluster; while it is locked still, the workers let go of the image, and their model goes."""
        with super()._ledger() as ledger:
            try:
                yield ledger
            finally:
                self._let_go()
                with suppress(OSError):  # another run sends its own
                    (self.job_folder / remote.MODEL).unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._recipe is not None:
            with suppress(Exception):  # a cluster that went away has let go of it, too
                self._client.run(remote.forget, self._recipe.run)

    def _drop_maps(self) -> None:
        self._let_go()  # Windows removes no maps that are open
        super()._drop_maps()

    def _predictor(self, ledger: Ledger) -> Predictor:
        from napari_isdnet.engine.windowed import WindowPredictor, window_size
        from napari_isdnet.model.checkpoint import save_model

        o = self.options
        whole = o.context == "whole"
        # As they are, not rounded to half: the workers' bytes must be those of one machine.
        save_model(self.model, self.job_folder / remote.MODEL, half=False)
        self._recipe = recipe = remote.Recipe(
            run=uuid.uuid4().hex,
            job=self.job_folder.resolve(),
            image=_sendable(self.source),
            name=self.source.name,
            scale=float(o.scale),
            identity=dict(self.source.identity()),
            policy=self.policy,
            device=o.device if o.device != "auto" else self.placement.device.type,
            precision=self.placement.precision,
            context=o.context,
            window=self.core if whole else window_size(self.model, o.window),
            region=self.region,
            wanted=o.wanted(),
            skip_bad_tiles=o.skip_bad_tiles,
            orientations=o.orientations,
        )
        here = Placement(torch.device("cpu"), torch.float32)  # this process computes no pixel
        reader = PatchReader(self.source, self.policy, self.model, o.skip_bad_tiles)
        if not whole:
            return WindowPredictor(self.model, reader, here, recipe.window)
        turns = orientations(o.orientations)
        known = known_means(self.identity, len(turns)) if o.roi is not None else [None] * len(turns)
        ready, log, parts = prepare(self.model, here), LedgerLog(ledger), []
        try:
            for turn, means in zip(turns, known, strict=True):
                folder = self.job_folder / "maps" / part_folder(turn.number)
                stream = StreamOptions(self.core, folder, log=log.of(turn.number), means=means)
                image = _ClusterImage(ready, turned(reader, turn), here, stream, self._client, recipe, turn.number)
                parts.append(Part(turn, image))
        except NotLocalError as error:
            raise InputError(f"{error.cause}, so it cannot be spread over workers; run it without --dask.") from error
        return Oriented(parts, reader, self.model.config.num_classes)

    def _fill(self, predictor: Predictor, stores: ResultStores, ledger: Ledger) -> Generator[Progress, None, None]:
        assert self._recipe is not None
        start = PREPARE_SHARE if self.options.context == "whole" else 0.0
        todo, total = stores.missing(), len(stores.labels.shards)
        clock = Clock(total, total - len(todo))
        images = [part.predictor for part in getattr(predictor, "parts", ())]
        known = tuple(image.known() for image in images) or (remote.Known(),) * self.options.orientations
        for done in spread(self._client, self._recipe, "labels", todo, known):
            if done.bad:
                ledger.record("bad", done.unit, {"windows": done.bad})
            window = stores.labels.shards[done.unit].shifted(self.region.row, self.region.column)
            yield clock.step(1, "write", window).within(start, 1 - EXPORT_SHARE - start)


class _ClusterImage(WholeImage):
    """A whole image whose passes run on workers; the barriers between them are here."""

    def __init__(
        self,
        model: ISDNet,
        reader: Patches,
        placement: Placement,
        options: StreamOptions,
        client: Any,
        recipe: remote.Recipe,
        orientation: int = 0,
    ) -> None:
        super().__init__(model, reader, placement, options)
        self._client, self._recipe, self._orientation = client, recipe, orientation

    def known(self) -> remote.Known:
        """What workers must be told of this orientation."""
        return remote.Known(tuple(item.name for item in self.maps if not item.missing()), self.means)

    def _spread(self, stage: str, todo: Sequence[int]) -> Iterator[int]:
        known = [remote.Known()] * self._recipe.orientations
        known[self._orientation] = self.known()
        by_name = {item.name: item for item in self.maps}
        for done in spread(self._client, self._recipe, stage, todo, tuple(known), self._orientation):
            for name, unit, sums in done.sums:
                self.accept(by_name[name], unit, sums)
            yield done.unit

    def _shallow_pass(self, clock: Clock) -> Generator[Progress, None, None]:
        grid = Grid(self.sizes.image, (self.options.core, self.options.core))
        todo = self.shallow_missing()
        clock.skip(SHARES["shallow"] * (1 - len(todo) / len(grid)))
        for unit in self._spread("shallow", todo):
            yield clock.step(SHARES["shallow"] / len(grid), "shallow", grid[unit])

    def _pass(self, clock: Clock, item: LazyMap, stage: str, scale: int) -> Generator[Progress, None, None]:
        todo = item.missing()
        share = SHARES[stage] / len(item.grid)
        clock.skip(share * (len(item.grid) - len(todo)))
        for unit in self._spread(item.name, todo):
            yield clock.step(share, stage, item.grid[unit].multiplied(scale).clipped(self.sizes.image))


def spread(
    client: Any,
    recipe: remote.Recipe,
    stage: str,
    units: Sequence[int],
    known: tuple[remote.Known, ...],
    orientation: int = 0,
) -> Iterator[remote.Done]:
    """Units as workers finish them. A few per worker are under way, so that ending the iterator ends the work soon."""
    from distributed import as_completed

    waiting, todo = as_completed([], loop=client.loop), iter(units)  # type: ignore[no-untyped-call]
    under_way: dict[Any, int] = {}

    def send(count: int) -> None:
        for _, unit in zip(range(count), todo, strict=False):
            future = client.submit(
                remote.run_unit, recipe, remote.Task(stage, unit, orientation), known, pure=False, retries=RETRIES,
                key=f"isdnet-{stage}-{unit}-{uuid.uuid4().hex[:8]}",
            )  # fmt: skip
            under_way[future] = unit
            waiting.add(future)

    try:
        send(2 * max(1, len(client.scheduler_info(n_workers=-1)["workers"])))
        while under_way:
            future = next(waiting)
            yield _result(future, stage, under_way.pop(future))
            send(1)
    finally:
        client.cancel(list(under_way))


def _result(future: Any, stage: str, unit: int) -> remote.Done:
    try:
        done: remote.Done = future.result()
    except Exception as error:
        raise InputError(
            f"Unit {unit} of the pass '{stage}' failed on the cluster {RETRIES + 1} times"
            f" ({type(error).__name__}: {' '.join(str(error).split())[:200]}); what is done is kept: run the same"
            " command again to go on."
        ) from error
    if done.error is not None:
        raise InputError(done.error)
    return done


def _sendable(source: ImageSource) -> Any:
    """The path by which workers open the image, or the source itself where it has no file and is small."""
    import pickle

    inner = source.source if isinstance(source, ScaledSource) else source
    path = quick_identity(inner).get("path")
    if path is not None:
        return str(path)
    try:
        size = len(pickle.dumps(inner))
    except Exception as error:
        raise InputError(
            f"{inner.name} is only in this process; save it as a file that the workers can open."
        ) from error
    if size > MOST_SENT:
        raise InputError(
            f"{inner.name} is in memory only; save it as OME-Zarr or TIFF, so that the workers can read it."
        )
    return inner
