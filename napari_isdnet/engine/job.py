"""What one job is: image, network, parameters; and the folder in which it can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from napari_isdnet import __version__
from napari_isdnet.engine.device import Placement, keep_freed_memory, prepare, return_freed_memory, working_bytes
from napari_isdnet.engine.halo import NotLocalError
from napari_isdnet.engine.ledger import Ledger
from napari_isdnet.engine.means import Means
from napari_isdnet.engine.patches import PatchReader, Policy
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from napari_isdnet.model.isdnet import ISDNet

Context = Literal["whole", "window"]
RAM_MAPS = 2**30
"""Maps of at most this many bytes stay in RAM; after a kill they are computed again."""
KEEPS_MEMORY = 2 * 2**30
"""From this many bytes to work with on, a command keeps freed memory (``device.keep_freed_memory``) for speed."""


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

    def close(self) -> None:
        """Release memory and files."""


class LedgerLog:
    """The ledger of a job, as :class:`~napari_isdnet.engine.streaming.WholeImage` sees it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def done(self, stage: str) -> Iterable[int]:
        """Units of ``stage`` that are stored."""
        return [int(unit) for unit in self.ledger.units(stage)]

    def sums(self, stage: str, unit: int) -> npt.NDArray[np.float64]:
        """Partial sums of a unit, bit for bit as they were recorded."""
        sums: npt.NDArray[np.float64] = self.ledger.payload(stage, unit)
        return sums

    def forget(self, stage: str) -> None:
        """Nothing of ``stage`` is stored any more."""
        self.ledger.forget(stage)

    def record(self, stage: str, unit: int, sums: npt.NDArray[np.float64]) -> None:
        """A unit is stored."""
        self.ledger.record(stage, unit, sums)


def core_for(budget: int, shape: tuple[int, int], asked: int | None = None) -> int:
    """Side of the shallow pass's cores: as large as ``budget`` bytes to work with allow, since halos cost time.

    A patch may cost 200 bytes a pixel beside 96 MiB for tiles and results. Measured in bfloat16, as the growth of the
    process that hands back what it frees: 50 MiB and 190 bytes a pixel of the patch, the window that is read ahead and
    the bands that are written included. From ``KEEPS_MEMORY`` on a patch may cost 400 of half the budget: a process
    that keeps freed memory is twice as fast on large windows, but takes twice as much.
    """
    if asked is not None:
        return max(32, asked // 32 * 32)
    pixels = budget / 2 / 400 if budget >= KEEPS_MEMORY else max(0, budget - 96 * 2**20) / 200
    side = int(pixels**0.5) - 2 * 224
    core = next((c for c in (4096, 3072, 2048, 1536, 1024, 768) if c <= side), 512)
    # No larger than the image: maps are allocated by the core.
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
    means: Means | None = None,
    skip_bad_tiles: bool = False,
    exact: bool = False,
) -> Predictor:
    """The predictor of an image; maps of more than a quarter of the budget (or ``RAM_MAPS``) go to ``folder``."""
    from napari_isdnet.engine.oneshot import OneShot
    from napari_isdnet.engine.streaming import StreamOptions, WholeImage
    from napari_isdnet.engine.windowed import WindowPredictor

    if context not in ("whole", "window"):
        raise InputError(f"The context must be whole or window, got '{context}'.")
    reader = PatchReader(source, policy, model, skip_bad_tiles)
    ready = prepare(model, placement)
    if context == "window":
        return WindowPredictor(ready, reader, placement, window)
    budget = working_bytes(memory)
    core = core_for(budget, source.shape, window)
    bytes_per_pixel = map_bytes_per_pixel(ready) * (2 if exact else 1)
    in_ram = folder is None or bytes_per_pixel * source.shape[0] * source.shape[1] < min(budget // 4, RAM_MAPS)
    try:
        options = StreamOptions(core, None if in_ram else folder, exact, log=None if in_ram else log, means=means)
        return WholeImage(ready, reader, placement, options)
    except NotLocalError as error:
        return OneShot(ready, reader, placement, budget, error.cause)


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
    import torch

    return {
        "image": dict(source.identity()),
        "model": model_hash,
        "device": placement.device.type,
        "precision": placement.precision,
        **parameters,
        "versions": {"napari-isdnet": __version__, "torch": torch.__version__.split("+")[0]},
    }


def means_key(header: dict[str, Any]) -> str:
    """Name under which the global means of an image under a model are kept.

    With a ``core`` in the header they are those of that very core, bit for bit; without, of any (they differ by
    rounding, which is enough for looking at an image).
    """
    keys = ("image", "model", "device", "precision", "intensity", "scale", "core")
    wanted = {k: header[k] for k in keys if k in header}
    return hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode()).hexdigest()[:32]


def load_means(key: str) -> Means | None:
    """Means that were found before, from the cache folder; None where there are none or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = _means_path(key)
    try:
        means = Means.from_arrays(dict(load_file(path)))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return means if means.complete else None


def save_means(key: str, means: Means) -> None:
    """Keep means in the cache folder; a folder that cannot be written is no error, they are found again."""
    from safetensors.numpy import save

    from napari_isdnet.io.disk import write_atomic

    path = _means_path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(means.to_arrays()))
    except (OSError, InputError):
        return


def _means_path(key: str) -> Path:
    from napari_isdnet.paths import cache_folder

    return cache_folder() / "means" / f"{key}.safetensors"
