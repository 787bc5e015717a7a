"""What one job is: image, network, parameters; and the folder in which it can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from napari_isdnet import __version__
from napari_isdnet.engine.device import (
    Placement,
    describe_device,
    keep_freed_memory,
    prepare,
    return_freed_memory,
    working_bytes,
)
from napari_isdnet.engine.halo import NotLocalError
from napari_isdnet.engine.ledger import Ledger
from napari_isdnet.engine.means import Means
from napari_isdnet.engine.patches import Patches, PatchReader, Policy
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, resident_bytes
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from napari_isdnet.engine.streaming import StreamOptions
    from napari_isdnet.model.isdnet import ISDNet

Context = Literal["whole", "window"]
RAM_MAPS = 2**30
"""Maps of at most this many bytes stay in RAM; after a kill they are computed again."""
PATCH_PIXEL_BYTES, MEASURED_PIXEL_BYTES, BESIDE_BYTES, HALO = 200, 190, 96 * 2**20, 224
"""What :func:`core_for` reckons with: a patch's pixel, measured of 8-bit RGB, all beside a patch; halo in pixels."""
KEEPS_MEMORY = 2 * 2**30
"""From this many bytes to work with on, a command keeps freed memory (``device.keep_freed_memory``) for speed."""
KEPT_MEANS = 2000
"""Files of means that the cache keeps, those used last: a few kilobytes each, two or more for an image and a model."""


def keep_memory_within(memory: float | None) -> None:
    """Keep freed memory for speed where a budget of ``memory`` GiB allows it, else hand it back at once.

    For a command that segments and ends.
    """
    if working_bytes(memory) >= KEEPS_MEMORY:
        keep_freed_memory()
    else:
        return_freed_memory()


class Predictor(Protocol):
    """What segments any window of one image, once prepared."""

    @property
    def prepared(self) -> bool:
        """True when ``labels`` may be asked for."""

    def prepare(self) -> Generator[Progress, None, None]:
        """Do what has to be done over the whole image first."""

    def labels(self, window: Window) -> npt.NDArray[np.uint8]:
        """Class indices (h, w) of a level-0 window, 255 where there is nodata."""

    def logits(self, window: Window) -> Tensor:
        """Logits (1, K, h, w) of a level-0 window."""

    def fine(self, window: Window) -> Callable[[Window], Tensor]:
        """Logits (1, K, h, w) of parts of a level-0 window; what they share is computed once."""

    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What ``labels`` and ``fine`` give of a level-0 window, from one computation of what they share."""

    def close(self) -> None:
        """Release memory and files."""


class LedgerLog:
    """The ledger of a job, as :class:`~napari_isdnet.engine.streaming.WholeImage` sees it: of one orientation."""

    def __init__(self, ledger: Ledger, orientation: int = 0) -> None:
        self.ledger, self._prefix = ledger, part_folder(orientation)

    def of(self, orientation: int) -> LedgerLog:
        """The same ledger for another orientation."""
        return LedgerLog(self.ledger, orientation)

    def done(self, stage: str) -> Iterable[int]:
        """Units of ``stage`` that are stored."""
        return [int(unit) for unit in self.ledger.units(self._prefix + stage)]

    def sums(self, stage: str, unit: int) -> npt.NDArray[np.float64]:
        """Partial sums of a unit, bit for bit as they were recorded."""
        sums: npt.NDArray[np.float64] = self.ledger.payload(self._prefix + stage, unit)
        return sums

    def forget(self, stage: str) -> None:
        """Nothing of ``stage`` is stored any more."""
        self.ledger.forget(self._prefix + stage)

    def record(self, stage: str, unit: int, sums: npt.NDArray[np.float64]) -> None:
        """A unit is stored."""
        self.ledger.record(self._prefix + stage, unit, sums)


def part_folder(orientation: int) -> str:
    """Where an orientation has its maps and records; the image as it is has them where it always had."""
    return f"turned{orientation}/" if orientation else ""


def picture_bytes(memory: float | None) -> int:
    """What a picture that is decoded whole may take of a budget of ``memory`` GiB.

    All but what the smallest windows take beside it, and half of what is too little for that: such windows are made
    whatever the budget.
    """
    budget = working_bytes(memory)
    return max(budget // 2, budget - BESIDE_BYTES - PATCH_PIXEL_BYTES * (512 + 2 * HALO) ** 2)


def core_for(
    budget: int, shape: tuple[int, int], asked: int | None = None, *, stored: int = 3, resident: int = 0
) -> int:
    """Side of the shallow pass's cores: as large as ``budget`` bytes to work with allow, since halos cost time.

    A patch may cost ``PATCH_PIXEL_BYTES`` a pixel beside ``BESIDE_BYTES`` for tiles and results. Measured in bfloat16,
    as the growth of the process that hands back what it frees: 50 MiB and 190 bytes a pixel of the patch, the window
    that is read ahead and the bands that are written included. From ``KEEPS_MEMORY`` on a patch may cost twice that of
    half the budget: a process that keeps freed memory is twice as fast on large windows, but takes twice as much.

    ``stored`` are the bytes of a pixel as it is read (those that were measured: 3), which a patch and the window that
    is read ahead hold; ``resident`` what the image itself takes as long as it is open.
    """
    if asked is not None:
        return max(32, asked // 32 * 32)
    pixel, left = max(PATCH_PIXEL_BYTES, MEASURED_PIXEL_BYTES + 2 * (stored - 3)), max(0, budget - resident)
    pixels = left / 2 / (2 * pixel) if budget >= KEEPS_MEMORY else max(0, left - BESIDE_BYTES) / pixel
    side = int(pixels**0.5) - 2 * HALO
    core = next((c for c in (4096, 3072, 2048, 1536, 1024, 768) if c <= side), 512)
    # No larger than the image, which is then one core.
    return min(core, -(-max(shape) // 32) * 32)


def make_predictor(
    model: ISDNet,
    source: ImageSource,
    policy: Policy,
    placement: Placement,
    *,
    context: Context = "whole",
    window: int | None = None,
    memory: float | None = None,
    folder: Path | None = None,
    log: LedgerLog | None = None,
    means: Sequence[Means | None] = (),
    skip_bad_tiles: bool = False,
    exact: bool = False,
    orientations: int = 1,
) -> Predictor:
    """The predictor of an image; maps of more than a quarter of the budget (or ``RAM_MAPS``) go to ``folder``.

    On a graphics card they stay in its memory where that has room (:func:`room_on_device`) and the whole image is asked
    for: with known ``means`` only what is looked at is computed, which is little of a sparse file and all of a memory.

    With several ``orientations`` (2, 4 or 8) the mean of that many: see :mod:`napari_isdnet.engine.orientations`.
    ``means`` are what is known of the whole image, one for each of them.
    """
    from napari_isdnet.engine.orientations import Oriented, Part, turned
    from napari_isdnet.engine.orientations import orientations as turns_of
    from napari_isdnet.engine.streaming import StreamOptions
    from napari_isdnet.engine.windowed import CACHE_BYTES, WindowPredictor

    if context not in ("whole", "window"):
        raise InputError(f"The context must be whole or window, got '{context}'.")
    turns = turns_of(orientations)
    reader = PatchReader(source, policy, model, skip_bad_tiles)
    ready = prepare(model, placement)
    budget = working_bytes(memory)
    core = core_for(budget, source.shape, window, stored=reader.pixel_bytes, resident=resident_bytes(source))
    bytes_per_pixel = map_bytes_per_pixel(ready) * (2 if exact else 1) * len(turns)
    size = bytes_per_pixel * source.shape[0] * source.shape[1]
    asked = any(item is None or not item.complete for item in means) or not means
    on_device = context == "whole" and asked and size < room_on_device(placement.device)
    in_ram = folder is None or size < min(budget // 4, RAM_MAPS)
    parts = []
    for turn, known in zip(turns, [*means, *[None] * len(turns)]):
        patches = turned(reader, turn)
        if context == "window":
            predictor: Predictor = WindowPredictor(ready, patches, placement, window, cache=CACHE_BYTES // len(turns))
        else:
            own = None if in_ram or folder is None else folder / part_folder(turn.number)
            notes = None if in_ram or log is None else log.of(turn.number)
            stream = StreamOptions(core, own, exact, log=notes, means=known)
            predictor = _whole(ready, patches, placement, stream, budget, on_device)
        parts.append(Part(turn, predictor))
    return parts[0].predictor if len(parts) == 1 else Oriented(parts, reader, model.config.num_classes)


def _whole(
    ready: ISDNet, reader: Patches, placement: Placement, options: StreamOptions, budget: int, on_device: bool
) -> Predictor:
    """One orientation in the context of the whole image: streamed, or at once where the network cannot be.

    ``on_device`` tries to keep the maps there, which another program may have filled meanwhile.
    """
    from napari_isdnet.engine.oneshot import OneShot
    from napari_isdnet.engine.streaming import WholeImage

    try:
        if on_device:
            there = replace(options, folder=None, log=None, on_device=True)
            with suppress(torch.OutOfMemoryError):
                return WholeImage(ready, reader, placement, there)
            torch.cuda.empty_cache()
        return WholeImage(ready, reader, placement, options)
    except NotLocalError as error:
        return OneShot(ready, reader, placement, budget, error.cause)


def room_on_device(device: torch.device) -> float:
    """Bytes of a graphics card's memory that maps may take: half of what is free, the rest is for windows.

    Maps that stay there are neither fetched nor sent again, 7 bytes a pixel both ways. 0 for a processor, whose maps
    lie in RAM or on the disk.
    """
    if device.type != "cuda":
        return 0.0
    # What an earlier job left with the allocator is free, too.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (describe_device(device)["free"] + kept) / 2


def known_means(header: Mapping[str, Any], orientations: int = 1) -> list[Means | None]:
    """What the cache knows of a job's image, one for each orientation."""
    return [load_means(means_key({**header, **_turned(n)})) for n in range(orientations)]


def keep_means(header: Mapping[str, Any], predictor: Predictor) -> None:
    """Keep what a prepared predictor found, for a later region or view of the same image."""
    parts = getattr(predictor, "parts", None)
    found = {p.orientation.number: p.predictor for p in parts} if parts is not None else {0: predictor}
    for number, part in found.items():
        means = getattr(part, "means", None)
        if means is not None:
            save_means(means_key({**header, **_turned(number)}), means)


def _turned(orientation: int) -> dict[str, Any]:
    return {"orientation": orientation} if orientation else {}


def map_bytes_per_pixel(model: ISDNet) -> float:
    """Bytes that the maps of a streamed image take per pixel (float16)."""
    if not model.config.fuses:
        return 0.0
    c, scale = model.config.channels, model.config.downscale
    deep = (scale * getattr(model.backbone, "output_stride", 8)) ** 2
    values = c / 64 + 2 * c / 256 + 3 / scale**2 + (model.backbone.out_channels[1] + c) / deep
    return 2.0 * values


def job_header(
    source: ImageSource, model_hash: str, placement: Placement, parameters: dict[str, Any]
) -> dict[str, Any]:
    """What must be equal for a job to be resumed."""
    return {
        "image": dict(source.identity()),
        "model": model_hash,
        "device": placement.device.type,
        "precision": placement.precision,
        **parameters,
        "versions": {"napari-isdnet": __version__, "torch": torch.__version__.split("+")[0]},
    }


def means_key(header: Mapping[str, Any]) -> str:
    """Name under which the global means of an image under a model are kept.

    With a ``core`` in the header they are those of that very core, bit for bit; without, of any (they differ by
    rounding, which is enough for looking at an image). Other versions may compute others, as for a job.
    """
    keys = ("image", "model", "device", "precision", "intensity", "scale", "core", "orientation", "versions")
    wanted = {k: header[k] for k in keys if k in header}
    wanted["format"] = 2  # the pools of a PSPNet head were kept in a wrong order before
    return hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode()).hexdigest()[:32]


def load_means(key: str) -> Means | None:
    """Means that were found before, from the cache folder; None where there are none or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from napari_isdnet.io.disk import used_now

    path = _means_path(key)
    try:
        means = Means.from_arrays(dict(load_file(path)))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    used_now(path)
    return means if means.complete else None


def save_means(key: str, means: Means) -> None:
    """Keep means in the cache folder, in place of the least used beyond :data:`KEPT_MEANS`.

    A folder that cannot be written is no error: they are found again.
    """
    from safetensors.numpy import save

    from napari_isdnet.io.disk import least_used, remove, write_atomic

    path = _means_path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(means.to_arrays()))
        for old in least_used(path.parent.glob("*.safetensors"), KEPT_MEANS):
            remove(old)
    except (OSError, InputError):
        return


def _means_path(key: str) -> Path:
    from napari_isdnet.paths import cache_folder

    return cache_folder() / "means" / f"{key}.safetensors"
