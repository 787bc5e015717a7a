"""Whole-image inference in bounded memory: ISDNet on an image of any size, as if it had been forwarded in one piece.

ISDNet has no local receptive field: RAF pools both of its maps over the whole image (Eq. 2), the context head pools
its input. What is local is computed window by window with the halo that a probe of the network found, at the
image's true border with the network's own padding; what is global are a few means, summed in float64 over the cores
in window order. Maps between the passes live in :class:`~napari_isdnet.engine.maps.LazyMap`, so that a region of a
big image, once the means are known, computes only what it needs, and equals the crop of the whole result.

    quarter      deep input                          (image / downscale)
    backbone     last stage of the deep backbone     -> pools for the context head         barrier 1
    deep16       head + first fusion's projection    -> its mean                           barrier 2
    shallow16/8  both shallow maps after projection  -> their means                        (with barrier 1)
    fused        first fusion + second's projection  -> its mean                           barrier 3
    logits       second fusion + classifier, enlarged to level 0 in whole-image coordinates
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.commits import Commits
from napari_isdnet.engine.device import Placement, device_memory, hand_back, out_of_memory
from napari_isdnet.engine.halo import padded_window
from napari_isdnet.engine.local import Gates, LocalNetwork
from napari_isdnet.engine.maps import DeviceMap, LazyMap, MapStorage, Storage, UnitLog, Values, map_is_stored
from napari_isdnet.engine.means import Means, MeanSums
from napari_isdnet.engine.patches import Patches, as_tensor, as_values, check_size
from napari_isdnet.engine.pieces import Enlarging, Sizes, cut, joined, labels_of
from napari_isdnet.engine.upload import Sent, Upload
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import MIN_SIDE, ISDNet
from napari_isdnet.model.layers import Place, resize_bilinear
from napari_isdnet.prefetch import ahead
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

SMALLEST_CORE = 128
"""Cores are not divided below this side when a device runs out of memory."""

# Shares of the work up to the last barrier, for an honest estimate of the time left: processor time of the reference
# network in float32 on one thread, 2048 x 2048 pixels in cores of 1024.
SHARES = {"shallow": 0.70, "deep": 0.22, "context": 0.045, "fuse": 0.035}


@dataclass
class StreamOptions:
    """How a whole image is streamed; nothing here changes the result beyond rounding, unless ``means`` are another's.

    ``core``: side of the level-0 cores of the shallow pass (a multiple of 32); ``folder``: where the maps are spilled
    (None: RAM), of which ``log`` says what is done; ``on_device`` keeps them on the device instead; ``exact`` in
    float32, not float16; ``prefetch`` windows are read ahead; known ``means`` spare the passes that find them.
    """

    core: int = 2048
    folder: Path | None = None
    exact: bool = False
    on_device: bool = False
    prefetch: int = 1
    log: UnitLog | None = None
    means: Means | None = None


class WholeImage(Enlarging):
    """One image under one network, streamed.

    ``prepare()`` runs the passes up to the last barrier (a generator of :class:`Progress`); afterwards
    ``labels(window)``, ``logits(window)`` and the maps answer for any window. With known ``means`` nothing needs to be
    prepared. Not thread-safe: one thread drives it.
    """

    def __init__(self, model: ISDNet, reader: Patches, placement: Placement, options: StreamOptions) -> None:
        check_size(reader.shape, MIN_SIDE)
        self.model, self.reader, self.placement, self.options = model, reader, placement, options
        self.local = LocalNetwork(model)
        self._upload = Upload(placement.device, reader.normal)
        shape = reader.shape
        deep_input = model.deep_size(*shape)
        stride = self.local.deep_stride
        self.sizes = Sizes(
            shape,
            deep_input,
            (-(-deep_input[0] // stride), -(-deep_input[1] // stride)),
            (-(-shape[0] // 16), -(-shape[1] // 16)),
            (-(-shape[0] // 8), -(-shape[1] // 8)),
        )
        self.dtype = np.dtype(np.float32 if options.exact else np.float16)
        self.means: Means | None = options.means
        self._sums = MeanSums(self.local.bins, self.sizes.deep)
        self._gates = Gates()
        spilled = options.folder is not None and not options.on_device
        self._commits = Commits(options.log) if options.log is not None and spilled else None
        self._largest = 2**31  # side of the largest core that the device's memory has not refused
        self._make_maps()

    # ------------------------------------------------------------------ maps

    def _map(
        self,
        name: str,
        shape: tuple[int, int],
        channels: int,
        core: int,
        compute: Callable[[int, Window], Values | None],
    ) -> LazyMap:
        folder, log = self.options.folder, self.options.log
        path = None if folder is None else folder / f"{name}.map"
        done: Iterable[int] = () if log is None else log.done(name)
        if log is not None and done and not map_is_stored(shape, channels, self.dtype, path):
            # A file that was taken away holds none of what the ledger says; before a new one looks as if it did.
            log.forget(name)
            done = ()
        storage: Storage
        if self.options.on_device:
            kept = torch.float32 if self.options.exact else torch.float16
            storage = DeviceMap(shape, channels, kept, self.placement.device)
        else:
            storage = MapStorage(shape, channels, self.dtype, path)
        for unit in done:
            assert log is not None
            self._sums.add(name, unit, log.sums(name, unit))

        def record(unit: int, values: Values) -> None:
            self._sums.measure(name, unit, values, Grid(shape, (core, core))[unit])
            if self._commits is not None:
                self._commits.add(storage, name, unit, self._sums.of(name, unit))

        return LazyMap(name, storage, core, compute, done, record)

    def _make_maps(self) -> None:
        local, sizes, core = self.local, self.sizes, self.options.core
        c = self.model.config.channels
        scale = self.model.config.downscale
        # Patches of the deep input as large as those of the image: a dilated backbone looks far, and halos cost time.
        deep_core = max(256, core + 2 * (local.shallow_halo - local.backbone_halo)) // 32 * 32
        self.quarter = self._map("quarter", sizes.deep_input, 3, core // scale, self._compute_quarter)
        self.shallow16 = self._map("shallow16", sizes.s16, c, core // 16, lambda unit, _: self.shallow_unit(unit))
        self.shallow8 = self._map("shallow8", sizes.s8, c, core // 8, lambda unit, _: self.shallow_unit(unit))
        self.backbone = self._map(
            "backbone", sizes.deep, local.backbone_channels, deep_core // local.deep_stride, self._compute_backbone
        )
        self.deep = self._map("deep16", sizes.deep, c, max(16, min(128, core // 16)), self._compute_deep)
        self.fused = self._map("fused", sizes.s16, c, max(16, core // 8), self._compute_fused)
        self.maps = (self.quarter, self.shallow16, self.shallow8, self.backbone, self.deep, self.fused)

    def flush(self) -> None:
        """Wait until what was computed is on the disk and in the log."""
        if self._commits is not None:
            self._commits.flush()

    def close(self) -> None:
        """Release RAM and files; spilled files stay for a resume."""
        try:
            if self._commits is not None:
                self._commits.close()
        finally:
            for item in self.maps:
                item.storage.close()

    def _tensor(self, values: Values) -> Tensor:
        return as_tensor(values, self.placement.device, self.placement.dtype)

    def _kept(self, values: Tensor) -> Values:
        """(h, w, C) as the maps keep it."""
        return values if self.options.on_device else values.cpu().numpy()

    # ------------------------------------------------------------------ local passes

    @torch.inference_mode()
    def _compute_quarter(self, unit: int, window: Window) -> Values:  # noqa: ARG002
        """The deep input alone (needed before the shallow pass gets there: a region under known means)."""
        core = self.local.quarter_pixels(window, self.sizes.image)
        patch = padded_window(core, self.local.quarter_halo, self.sizes.image)
        x = self._upload.tensor(self._upload.pixels(self.reader, patch))
        return self._kept(as_values(self._quarter_of(x, patch, window), self.dtype))

    def _quarter_unit(self, unit: int) -> int | None:
        """The deep input's unit of a level-0 core; None where the image's last few pixels give it none."""
        window = self.local.quarter_window(self._core(unit), self.sizes.image, self.sizes.deep_input)
        return None if window.empty else self.quarter.grid.touching(window)[0]

    def _shallow_done(self, unit: int) -> bool:
        quarter = self._quarter_unit(unit)
        return (
            self.shallow8.is_done(unit)
            and self.shallow16.is_done(unit)
            and (quarter is None or self.quarter.is_done(quarter))
        )

    def _quarter_of(self, x: Tensor, patch: Window, window: Window) -> Tensor:
        """Pixels ``window`` of the deep input; always from a patch of one size, so that the bits are the same."""
        core = self.local.quarter_pixels(window, self.sizes.image)
        inner = padded_window(core, self.local.quarter_halo, self.sizes.image)
        rows, columns = inner.relative_to(patch).slices
        part = x[:, :, rows, columns].contiguous(memory_format=torch.channels_last)
        return self.local.quarter(part, Place(inner, self.sizes.image), window)

    def _core(self, unit: int) -> Window:
        return Grid(self.sizes.image, (self.options.core, self.options.core))[unit]

    def _read_shallow(self, core: Window) -> tuple[Window, Sent]:
        patch = padded_window(core, self.local.shallow_halo, self.sizes.image)
        return patch, self._upload.send(self._upload.pixels(self.reader, patch))

    def _shallow_of(self, core: Window, read: tuple[Window, Sent]) -> dict[str, tuple[Window, Tensor]]:
        if max(core.shape) <= self._largest:
            try:
                return self._shallow_at_once(core, *read)
            except RuntimeError as error:  # in a function of its own, so that none of it is held by what follows
                if not out_of_memory(error):
                    raise
                hand_back()
            self._largest = max(core.shape) // 2 // 32 * 32
        read[1].drop()
        return self._shallow_in_parts(core)

    @torch.inference_mode()
    def _shallow_at_once(self, core: Window, patch: Window, sent: Sent) -> dict[str, tuple[Window, Tensor]]:
        x = sent.arrived()
        result: dict[str, tuple[Window, Tensor]] = {}
        quarter = self.local.quarter_window(core, self.sizes.image, self.sizes.deep_input)
        if not quarter.empty:
            result["quarter"] = (quarter, as_values(self._quarter_of(x, patch, quarter), self.dtype))
        p8, p16 = self.local.shallow(x, Place(patch, self.sizes.image))
        for name, tensor, stride, full in (("shallow8", p8, 8, self.sizes.s8), ("shallow16", p16, 16, self.sizes.s16)):
            window = core.divided(stride).clipped(full)
            rows, columns = window.shifted(-patch.row // stride, -patch.column // stride).slices
            result[name] = (window, as_values(tensor[:, :, rows, columns], self.dtype))
        return result

    def _shallow_in_parts(self, core: Window) -> dict[str, tuple[Window, Tensor]]:
        """The same from four smaller cores, each with its own halo, where the device's memory was too small."""
        half = max(core.shape) // 2 // 32 * 32
        if half < SMALLEST_CORE:
            raise InputError(
                f"The device has too little memory even for windows of {2 * half} pixels; end what else uses it,"
                " or use --device cpu."
            )
        parts: dict[str, list[tuple[Window, Tensor]]] = {}
        for window in Grid(core.shape, (half, half)):
            part = window.shifted(core.row, core.column)
            for name, item in self._shallow_of(part, self._read_shallow(part)).items():
                parts.setdefault(name, []).append(item)
        return {name: joined(items) for name, items in parts.items()}

    def _store_shallow(self, unit: int, result: dict[str, tuple[Window, Tensor]]) -> None:
        quarter = self._quarter_unit(unit)
        for item, own in ((self.quarter, quarter), (self.shallow8, unit), (self.shallow16, unit)):
            if own is not None and not item.is_done(own):
                item.put(own, self._kept(result[item.name][1]))

    @torch.inference_mode()
    def _compute_backbone(self, unit: int, window: Window) -> Values:  # noqa: ARG002
        stride, size = self.local.deep_stride, self.sizes.deep_input
        core = window.multiplied(stride).clipped(size)
        patch = padded_window(core, self.local.backbone_halo, size)
        last = self.local.backbone(self._tensor(self.quarter.read(patch)))
        return self._kept(as_values(cut(last, window, patch.divided(stride)), self.dtype))

    @torch.inference_mode()
    def _compute_deep(self, unit: int, window: Window) -> Values:  # noqa: ARG002
        patch = window.expanded(self.local.head_halo).clipped(self.sizes.deep)
        x = self._tensor(self.backbone.read(patch))
        deep = self.local.project_deep(x, self.gates.pools, Place(patch, self.sizes.deep))
        return self._kept(as_values(cut(deep, window, patch), self.dtype))

    @torch.inference_mode()
    def _compute_fused(self, unit: int, window: Window) -> Values:  # noqa: ARG002
        patch = window.expanded(self.local.fusion_halo).clipped(self.sizes.s16)
        out = Place(patch, self.sizes.s16)
        below = self.local.coarse_window(out, self.sizes.deep)
        gates = self.gates.fuse16
        assert gates is not None
        fused = self.local.fuse16(
            self._tensor(self.shallow16.read(patch)),
            self._tensor(self.deep.read(below)),
            gates,
            Place(below, self.sizes.deep),
            out,
        )
        return self._kept(as_values(cut(fused, window, patch), self.dtype))

    # ------------------------------------------------------------------ barriers

    @property
    def gates(self) -> Gates:
        """What the means say: projected pools and attention; as much of it as the means allow so far."""
        self._gates.learn(self.local, self.means or Means(), self.placement.device)
        return self._gates

    @property
    def prepared(self) -> bool:
        """True when every global mean is known."""
        return self.means is not None and self.means.complete

    def prepare(self) -> Generator[Progress, None, None]:
        """Run what is missing of the passes up to the last barrier; cancel by not asking for the next item."""
        if self.prepared:
            return
        with device_memory():
            yield from self._passes(Clock(1.0))

    def _passes(self, clock: Clock) -> Generator[Progress, None, None]:
        yield from self._shallow_pass(clock)
        yield from self._pass(clock, self.backbone, "deep", self.local.deep_stride * self.model.config.downscale)
        self.means = Means(
            self._sums.pools("backbone", len(self.backbone.grid)),
            {item.name: self._mean(item) for item in (self.shallow16, self.shallow8)},
        )
        yield from self._pass(clock, self.deep, "context", self.local.deep_stride * self.model.config.downscale)
        self.means.vectors["deep16"] = self._mean(self.deep)
        yield from self._pass(clock, self.fused, "fuse", 16)
        self.means.vectors["fused"] = self._mean(self.fused)

    def _mean(self, item: LazyMap) -> npt.NDArray[np.float64]:
        return self._sums.mean(item.name, len(item.grid))

    def _shallow_pass(self, clock: Clock) -> Generator[Progress, None, None]:
        grid = Grid(self.sizes.image, (self.options.core, self.options.core))
        todo = self.shallow_missing()
        clock.skip(SHARES["shallow"] * (1 - len(todo) / len(grid)))
        for unit, read in ahead(todo, lambda u: self._read_shallow(grid[u]), self.options.prefetch):
            self._store_shallow(unit, self._shallow_of(grid[unit], read))
            self._upload.pace()
            yield clock.step(SHARES["shallow"] / len(grid), "shallow", grid[unit])
        self.flush()

    def shallow_missing(self) -> list[int]:
        """Cores of the shallow pass that are not done, ascending."""
        count = len(Grid(self.sizes.image, (self.options.core, self.options.core)))
        return [unit for unit in range(count) if not self._shallow_done(unit)]

    def shallow_unit(self, unit: int) -> None:
        """One core of the shallow pass: both shallow maps and the deep input come out of one read."""
        core = self._core(unit)
        self._store_shallow(unit, self._shallow_of(core, self._read_shallow(core)))

    def accept(self, item: LazyMap, unit: int, sums: npt.NDArray[np.float64]) -> None:
        """A unit that another process has stored in the same file, with its partial sums."""
        self._sums.add(item.name, unit, sums)
        if self.options.log is not None:
            self.options.log.record(item.name, unit, sums)
        item.mark_done([unit])

    def _pass(self, clock: Clock, item: LazyMap, stage: str, scale: int) -> Generator[Progress, None, None]:
        todo = item.missing()
        share = SHARES[stage] / len(item.grid)
        clock.skip(share * (len(item.grid) - len(todo)))
        for unit in todo:
            item.ensure(unit)
            yield clock.step(share, stage, item.grid[unit].multiplied(scale).clipped(self.sizes.image))
        self.flush()

    # ------------------------------------------------------------------ results

    @torch.inference_mode()
    def coarse_logits(self, window8: Window) -> Tensor:
        """Logits (1, K, h, w) of a window at stride 8, float32."""
        gates = self.gates.fuse8
        assert gates is not None, "prepare() first"
        patch = window8.expanded(self.local.head8_halo).clipped(self.sizes.s8)
        out = Place(patch, self.sizes.s8)
        below = self.local.coarse_window(out, self.sizes.s16)
        logits = self.local.classify(
            self._tensor(self.shallow8.read(patch)),
            self._tensor(self.fused.read(below)),
            gates,
            Place(below, self.sizes.s16),
            out,
        )
        return cut(logits, window8, patch).float()

    @torch.inference_mode()
    def unit_logits(self, unit: Window) -> tuple[Tensor, Place]:
        """Stride-8 logits that a level-0 window needs for its enlargement, and where they lie."""
        window8 = self.local.coarse_window(Place(unit, self.sizes.image), self.sizes.s8)
        with device_memory():
            return self.coarse_logits(window8), Place(window8, self.sizes.s8)

    def fine(self, window: Window) -> Callable[[Window], Tensor]:
        """Full-resolution logits (1, K, h, w), float32, of parts of a level-0 window."""
        return self._enlarging(*self.unit_logits(window))

    @torch.inference_mode()
    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What ``labels`` and ``fine`` give, of the same logits at stride 8."""
        coarse, place = self.unit_logits(window)
        found = self.reader.mask(labels_of(coarse, place, window, self.sizes.image), window)
        return found, self._enlarging(coarse, place)

    def _enlarging(self, coarse: Tensor, place: Place) -> Callable[[Window], Tensor]:
        return lambda part: resize_bilinear(coarse, place, Place(part, self.sizes.image))
