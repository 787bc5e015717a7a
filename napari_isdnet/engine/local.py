"""The local pieces of an ISDNet, with their halos: what may be computed window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from napari_isdnet.engine.halo import NotLocalError, check_halo, plain_copy, probe_halo
from napari_isdnet.engine.means import Means
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.fusion import Attention, Fusion
from napari_isdnet.model.isdnet import Branch, ISDNet, nearest_index
from napari_isdnet.model.layers import Place, needed_for_resize
from napari_isdnet.window import Window


@dataclass(frozen=True)
class _Halos:
    """What the probes of one architecture found."""

    shallow: int
    backbone: int
    head: int


PROVEN = frozenset({"resnet18", "resnet50", "tf_efficientnet_lite0", "stdc1", "stdc2", "narrow"})
"""Branches that the tests try on noise (``tests/test_halo.py``), so that no start has to wait for it."""

_probed: dict[ISDNetConfig, _Halos | str] = {}
"""By architecture, or why it is not local: a probe takes seconds, and weights do not change what it finds."""


def _try(branch: nn.Module, output: int, channels: int, stride: int, halo: int, what: str) -> None:
    copy = plain_copy(branch)
    check_halo(lambda x: copy(x)[output], channels, stride, halo, what)


class LocalNetwork:
    """Pieces of a fused network between its barriers, and how far each looks (found by probing).

    Raises :class:`~napari_isdnet.engine.halo.NotLocalError` where a piece looks at its whole input.
    """

    def __init__(self, model: ISDNet) -> None:
        if not model.config.fuses:
            raise NotLocalError(f"A network of the {model.config.branches} branch alone is not streamed")
        self.model = model
        self.config = model.config
        self.bins = tuple(model.head.bins)
        self.deep_stride = getattr(model.backbone, "output_stride", self.config.deep_stride)
        self.backbone_channels = model.backbone.out_channels[1]
        # Halos: in level-0 pixels, pixels of the deep input, and pixels of the maps.
        self.quarter_halo = 2 ** (self.config.downscale.bit_length() + 1)
        halos = self._halos()
        self.shallow_halo = max(halos.shallow, self.quarter_halo)  # one patch serves both
        self.backbone_halo, self.head_halo = halos.backbone, halos.head
        self.fusion_halo = 3
        self.head8_halo = 3

    def _halos(self) -> _Halos:
        # How far a convolution looks depends on neither its width nor on what its output is used for.
        key = replace(self.config.inference(), num_classes=1, channels=16, fusion="add", dropout=0.0)
        if key not in _probed:
            try:
                _probed[key] = _Halos(self._probe_shallow(), self._probe_backbone(), self._probe_head())
            except NotLocalError as error:
                _probed[key] = error.cause
        found = _probed[key]
        if isinstance(found, str):
            raise NotLocalError(found)
        return found

    def _probe_backbone(self) -> int:
        what = f"The backbone '{self.config.deep}'"
        halo = probe_halo([self.model.backbone], lambda x, b: b(x)[1], 3, what)
        if self.config.deep not in PROVEN:
            _try(self.model.backbone, 1, 3, self.deep_stride, halo, what)
        return halo

    def _probe_shallow(self) -> int:
        m, what = self.model, f"The shallow branch '{self.config.shallow}'"
        channels, halo = self.config.shallow_channels, 0
        for i, fusion in enumerate((m.fuse8, m.fuse16)):
            pieces = [m.shallow, fusion.shallow_conv]
            halo = max(halo, probe_halo(pieces, lambda x, s, p, i=i: p(s(x)[i]), channels, what))
            if self.config.shallow not in PROVEN:
                _try(m.shallow, i, channels, (8, 16)[i], halo, what)
        # A residual at level i reaches 2 pixels of it for the low pass, 2 for the way up, and one for the enlargement.
        return halo + (0 if self.config.shallow_input == "rgb" else 6 * 2**self.config.residual_levels)

    def _probe_head(self) -> int:
        m = self.model

        def run(x: Tensor, head: nn.Module, conv: nn.Module) -> Tensor:
            pools = [x.new_zeros(1, x.shape[1], n, n) for n in self.bins]
            return conv(head.local(x, head.context(pools), Place.whole(x)))  # type: ignore[operator]

        return probe_halo([m.head, m.fuse16.deep_conv], run, self.backbone_channels, "The context head")

    # ------------------------------------------------------------------ geometry

    def quarter_window(self, core: Window, image: tuple[int, int], full: tuple[int, int]) -> Window:
        """Which pixels of the deep input belong to a level-0 core, whose edges are multiples of ``downscale``."""
        window = core.divided(self.config.downscale)
        bottom = full[0] if core.bottom >= image[0] else min(window.bottom, full[0])
        right = full[1] if core.right >= image[1] else min(window.right, full[1])
        return Window.from_bounds(min(window.row, full[0]), min(window.column, full[1]), bottom, right)

    def quarter_pixels(self, window: Window, image: tuple[int, int]) -> Window:
        """The level-0 pixels that a window of the deep input is made of."""
        if self.config.deep_filter == "lowpass":
            return window.multiplied(self.config.downscale).clipped(image)
        full = self.model.deep_size(*image)
        rows, columns = nearest_index(image[0], full[0]), nearest_index(image[1], full[1])
        return Window.from_bounds(
            rows[window.row], columns[window.column], rows[window.bottom - 1] + 1, columns[window.right - 1] + 1
        )

    @staticmethod
    def coarse_window(out: Place, full: tuple[int, int]) -> Window:
        """Window of a coarser map that the fusion's context needs for ``out``: enlargement, and a 3x3 before it."""
        return needed_for_resize(out.window, full, out.full).expanded(1).clipped(full)

    # ------------------------------------------------------------------ pieces

    def quarter(self, x: Tensor, place: Place, window: Window) -> Tensor:
        """Pixels ``window`` of the deep input from a level-0 patch (1, 3, h, w) that lies at ``place``."""
        scale, patch = self.config.downscale, place.window
        if scale == 1:
            rows, columns = window.relative_to(patch).slices
            return x[:, :, rows, columns]
        if self.config.deep_filter == "lowpass":
            low = self.model.pyramid.lowpass(x, scale.bit_length() - 1)
            rows, columns = window.shifted(-patch.row // scale, -patch.column // scale).slices
            return low[:, :, rows, columns]
        full = self.model.deep_size(*place.full)
        picked = []
        for axis, (start, stop, origin) in enumerate(
            ((window.row, window.bottom, patch.row), (window.column, window.right, patch.column))
        ):
            index = nearest_index(place.full[axis], full[axis])[start:stop]
            picked.append(torch.tensor(index, device=x.device) - origin)
        return x.index_select(2, picked[0]).index_select(3, picked[1])

    def shallow(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Projected shallow maps at strides 8 and 16 of a level-0 patch."""
        m = self.model
        s8, s16 = m.shallow(m.shallow_input(x, place).to(m.dtype))
        return m.fuse8.project_shallow(s8), m.fuse16.project_shallow(s16)

    def backbone(self, x: Tensor) -> Tensor:
        """Last stage of the deep backbone."""
        return self.model.backbone(x)[1]

    def context(self, pools: Sequence[Tensor]) -> list[Tensor]:
        """The context head's global half."""
        return self.model.head.context(pools)

    def head(self, x: Tensor, pools: Sequence[Tensor], place: Place) -> Tensor:
        """The context head's local half: the deep feature that enters the first fusion."""
        return self.model.head.local(x, pools, place)

    def project_deep(self, x: Tensor, pools: Sequence[Tensor], place: Place) -> Tensor:
        """Deep feature, projected for the first fusion."""
        return self.model.fuse16.project_deep(self.head(x, pools, place))

    def attention(self, fusion: Fusion, shallow: npt.NDArray[np.float64], deep: npt.NDArray[np.float64]) -> Attention:
        """Gates of a fusion from the means (C,) of both projected maps."""
        device = self.model.classifier.out.weight.device
        vectors = [torch.from_numpy(v).float().to(device).view(1, -1, 1, 1) for v in (shallow, deep)]
        with torch.inference_mode():
            return fusion.attention(*vectors)

    def fuse(
        self, fusion: Fusion, s: Tensor, d: Tensor, gates: Attention, place: Place, out: Place, only: Branch = "both"
    ) -> Tensor:
        """One fusion of projected maps: ``s`` at ``out``, ``d`` at ``place`` of its coarser map.

        ``only`` one branch: the other's summand is zero, the attention stays that of both.
        """
        context = fusion.context(d, gates.deep, place, out)
        if only == "shallow":
            context = torch.zeros_like(context)
        if only == "deep":
            s = torch.zeros_like(s)
        return fusion.combine(s, gates.shallow, context)

    def fuse16(self, s: Tensor, d: Tensor, gates: Attention, place: Place, out: Place) -> Tensor:
        """First fusion, projected for the second."""
        return self.model.fuse8.project_deep(self.fuse(self.model.fuse16, s, d, gates, place, out))

    def classify(self, s: Tensor, d: Tensor, gates: Attention, place: Place, out: Place) -> Tensor:
        """Second fusion and classifier: logits at stride 8."""
        return self.model.classifier(self.fuse(self.model.fuse8, s, d, gates, place, out))


@dataclass
class Gates:
    """Projected pools (empty until known, or where the head has none) and the attention of both fusions."""

    pools: list[Tensor] = field(default_factory=list)
    fuse16: Attention | None = None
    fuse8: Attention | None = None

    def learn(self, local: LocalNetwork, means: Means, device: torch.device) -> None:
        """Compute what is not known yet, as far as the means go."""
        if not self.pools and means.pools is not None:
            self.pools = local.context([torch.from_numpy(p).float().to(device)[None] for p in means.pools])
        if self.fuse16 is None and means.has("shallow16", "deep16"):
            self.fuse16 = local.attention(local.model.fuse16, means.vector("shallow16"), means.vector("deep16"))
        if self.fuse8 is None and means.has("shallow8", "fused"):
            self.fuse8 = local.attention(local.model.fuse8, means.vector("shallow8"), means.vector("fused"))
