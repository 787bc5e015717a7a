"""A look inside a network at work: every map of both branches and their fusions, for any region of any image.

In ``whole`` context the maps are those of the whole image (equal to the one-shot forward's), in ``window`` context
those of the windows of the fixed grid.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from napari_isdnet.engine.device import Placement
from napari_isdnet.engine.feature_info import MapInfo, channels_of, strides_of, title_of
from napari_isdnet.engine.feature_whole import WholeMaps
from napari_isdnet.engine.feature_window import WindowMaps
from napari_isdnet.engine.job import Context, make_predictor
from napari_isdnet.engine.means import Means
from napari_isdnet.engine.patches import Policy
from napari_isdnet.engine.rendering import Basis, fit_basis
from napari_isdnet.engine.streaming import WholeImage
from napari_isdnet.engine.windowed import WindowPredictor
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.model.isdnet import Branch, ISDNet
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

Array = npt.NDArray[np.float32]
SAMPLES = 3  # windows down and across that stand for a map
SAMPLE_PIXELS = 192  # their side in level-0 pixels


class FeatureView:
    """Maps, attention and one-branch answers of an image under a network. Thread-safe once prepared.

    Run ``prepare()`` (a generator of :class:`~napari_isdnet.progress.Progress`) first; it does nothing in ``window``
    context, or where the ``means`` of the whole image are given. Maps of large images are spilled to ``folder``, which
    its maker removes after :meth:`close`. A network that cannot be streamed is forwarded in one piece in ``whole``
    context, and refused (:class:`~napari_isdnet.exceptions.InputError`) where the image is too large for that.
    """

    def __init__(
        self,
        source: ImageSource,
        model: ISDNet,
        policy: Policy,
        placement: Placement,
        context: Context = "whole",
        *,
        window: int | None = None,
        memory: float | None = None,
        folder: Path | None = None,
        means: Means | None = None,
        exact: bool = False,
    ) -> None:
        predictor = make_predictor(
            model, source, policy, placement,
            context=context, window=window, memory=memory, folder=folder, means=(means,), exact=exact,
        )  # fmt: skip
        self.source, self.context = source, context
        self._maps: WholeMaps | WindowMaps
        if isinstance(predictor, WholeImage):
            self._maps = WholeMaps(predictor)
        else:
            ready, reader = predictor.model, predictor.reader  # type: ignore[attr-defined]
            whole = not isinstance(predictor, WindowPredictor)
            self._maps = WindowMaps(ready, reader, placement, window, whole=whole)
        self.model: ISDNet = self._maps.model
        self.names: tuple[str, ...] = tuple(strides_of(self.model))
        self._samples: dict[str, Array] = {}
        self._bases: dict[str, Basis] = {}

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that can be asked: all three answers of a network that fuses, else ``both`` only."""
        return ("both", "shallow", "deep") if self.model.config.fuses else ("both",)

    @property
    def prepared(self) -> bool:
        """True when everything may be asked for."""
        return self._maps.prepared

    @property
    def means(self) -> Means | None:
        """Global means that were found, to be given to a later view of the same image."""
        return self._maps.whole.means if isinstance(self._maps, WholeMaps) else None

    def prepare(self) -> Generator[Progress, None, None]:
        """Find what has to be known of the whole image."""
        if isinstance(self._maps, WholeMaps):
            yield from self._maps.prepare()

    def info(self, name: str) -> MapInfo:
        """What a map is and how it lies on the image; :class:`InputError` where this network has no such map."""
        strides = strides_of(self.model)
        if name not in strides:
            raise InputError(f"There is no map '{name}' in this network; it has {', '.join(strides)}.")
        stride = strides[name]
        return MapInfo(name, title_of(name, stride), channels_of(self.model, name), stride, self._maps.extent(name))

    def read(self, name: str, window: Window) -> Array:
        """Values (height, width, channels), float32, of ``window`` in cells of the map ``name``."""
        extent = self.info(name).extent
        if window.empty or not Window.whole(extent.shape).contains(window):
            raise InputError(f"Map '{name}' has {extent.shape[0]} x {extent.shape[1]} cells; {window} lies outside.")
        return self._maps.read(name, window)

    def vector(self, name: str, row: float, column: float) -> Array:
        """Values (channels,) of the cell in which a level-0 pixel lies."""
        cell = self.info(name).extent.cell(row, column)
        values: Array = self.read(name, Window(*cell, 1, 1))[0, 0]
        return values

    def attention(self, row: float = 0, column: float = 0) -> dict[str, Array]:
        """``M_s16 M_d16 R16 M_s8 M_d8 R8`` (Eq. 2 and 3): vectors (C,) and matrices (G, G).

        Of the whole image, or in ``window`` context of the window that answers for a pixel. Without those that the
        network's fusions do not have.
        """
        return self._maps.attention(row, column)

    def logits(self, window: Window, branch: Branch = "both") -> torch.Tensor:
        """Logits (1, K, h, w) of a level-0 window, as the whole network or one branch alone would say."""
        if branch not in self.branches:
            raise InputError(f"This network has one branch only; ask it for 'both', got '{branch}'.")
        return self._maps.logits(window, branch)

    def opinions(self, row: int, column: int) -> dict[str, Array]:
        """Class probabilities (K,) at a pixel: by ``both``, and by ``shallow`` and ``deep`` alone."""
        if not Window.whole(self.source.shape).contains(Window(row, column, 1, 1)):
            raise InputError(f"Pixel {row}, {column} lies outside the image; click on the image.")
        pixel = Window(row, column, 1, 1)
        return {b: torch.softmax(self.logits(pixel, b)[0, :, 0, 0].float(), 0).numpy() for b in self.branches}

    # ------------------------------------------------------------------ how maps are shown

    def sample(self, name: str) -> Array:
        """A bounded sample (n, channels) of a map, from windows spread over the *whole* image."""
        if name not in self._samples:
            info = self.info(name)
            side = max(6, min(96, int(SAMPLE_PIXELS / info.stride)))
            starts = []
            for count in info.extent.shape:
                length = min(side, count)
                starts.append((sorted({int(v) for v in np.linspace(0, count - length, SAMPLES + 2)[1:-1]}), length))
            (rows, height), (columns, width) = starts
            parts = [self.read(name, Window(r, c, height, width)) for r in rows for c in columns]
            self._samples[name] = np.concatenate([p.reshape(-1, p.shape[2]) for p in parts])
        return self._samples[name]

    def basis(self, name: str) -> Basis:
        """Principal axes, order of channels and contrast limits of a map: one for the whole image, whatever region."""
        if name not in self._bases:
            self._bases[name] = fit_basis(self.sample(name))
        return self._bases[name]

    def close(self) -> None:
        """Release memory and files."""
        self._maps.close()
