"""Fusion of a shallow and a deep map: relation-aware fusion (Section 3.2, Eq. 2-5) and the alternatives of Table 6.

Every fusion is made of local pieces (projections, context, combination) and one global piece, the attention computed
from the two means over the *whole* maps. That split is what lets a gigapixel image be streamed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.heads import PooledConv
from napari_isdnet.model.layers import ConvBNReLU, Place, resize_bilinear

GROUPS = 16


@dataclass(frozen=True)
class Attention:
    """What a fusion derives from the whole maps: gates in (0, 1), or None where a branch is not gated.

    ``m_shallow`` and ``m_deep`` (B, C) are the attention vectors before the relation is added (Eq. 2),
    ``relation`` (B, G, G) is Eq. 3; all None for fusions that have none.
    """

    shallow: Tensor | None = None
    deep: Tensor | None = None
    m_shallow: Tensor | None = None
    m_deep: Tensor | None = None
    relation: Tensor | None = None


class Fusion(nn.Module):
    """One fusion of a shallow map with a coarser deep map, both brought to ``channels``.

    ``config.fusion`` picks: ``raf`` (Eq. 2-5), ``raf_single`` (the relation gates the shallow branch only), ``add`` and
    ``cat`` (no attention), ``add_ca`` and ``cat_ca`` (channel-wise attention, no relation).
    """

    def __init__(
        self, shallow_channels: int, deep_channels: int, config: ISDNetConfig, kind: str | None = None
    ) -> None:
        super().__init__()
        kind = kind or config.fusion
        paper, channels = config.flavour == "paper", config.channels
        self.kind = kind
        self.context_first = config.context_first
        self.shallow_conv = ConvBNReLU(shallow_channels, channels, 1 if paper else config.shallow_kernel)
        self.deep_conv = ConvBNReLU(deep_channels, channels, 1 if paper else 3)
        self.pools = kind in ("raf", "raf_single", "add_ca", "cat_ca")
        if self.pools:
            self.shallow_gate = PooledConv(channels, channels, relu=False, norm=not paper)
            self.deep_gate = PooledConv(channels, channels, relu=False, norm=not paper)
        self.relational = kind in ("raf", "raf_single")
        if self.relational:
            self.shallow_mlp = _mlp(channels, paper)
            self.alpha_shallow = nn.Parameter(torch.zeros(1))
            if kind == "raf":
                self.deep_mlp = _mlp(channels, paper)
                # Eq. 4 has one alpha; the published code learns one for each branch.
                self.alpha_deep = self.alpha_shallow if paper else nn.Parameter(torch.zeros(1))
        self.context_conv = nn.Identity() if paper else ConvBNReLU(channels, channels)
        width = 2 * channels if kind.startswith("cat") else channels
        self.smooth = ConvBNReLU(width, channels, relu=paper)

    def project_shallow(self, x: Tensor) -> Tensor:
        """Local: shallow features to ``channels``."""
        return self.shallow_conv(x)

    def project_deep(self, x: Tensor) -> Tensor:
        """Local: deep features to ``channels``."""
        return self.deep_conv(x)

    def attention(self, mean_shallow: Tensor, mean_deep: Tensor) -> Attention:
        """Global: gates from the (B, C, 1, 1) means of both projected maps over the whole image (Eq. 2-4)."""
        if not self.pools:
            return Attention()
        # The gates are a few thousand numbers that steer every pixel: an engine may keep them in float32.
        dtype = self.shallow_gate.conv.weight.dtype
        s, d = self.shallow_gate(mean_shallow.to(dtype)), self.deep_gate(mean_deep.to(dtype))
        m_s, m_d = s.flatten(1), d.flatten(1)
        if not self.relational:
            return Attention(torch.sigmoid(s), torch.sigmoid(d), m_s, m_d)
        relation = torch.bmm(m_s.unflatten(1, (GROUPS, -1)), m_d.unflatten(1, (GROUPS, -1)).transpose(1, 2))
        flat = relation.flatten(1)
        gate_s = torch.sigmoid(s + self.alpha_shallow * self.shallow_mlp(flat)[:, :, None, None])
        if self.kind == "raf_single":
            return Attention(gate_s, None, m_s, m_d, relation)
        gate_d = torch.sigmoid(d + self.alpha_deep * self.deep_mlp(flat)[:, :, None, None])
        return Attention(gate_s, gate_d, m_s, m_d, relation)

    def context(self, deep: Tensor, gate: Tensor | None, place: Place, out: Place) -> Tensor:
        """Local: gate the projected deep map, enlarge it to ``out`` (whole-image coordinates), convolve."""
        if gate is not None:
            deep = deep * gate.to(deep.dtype)
        if self.context_first:
            return resize_bilinear(self.context_conv(deep), place, out)
        return self.context_conv(resize_bilinear(deep, place, out))

    def combine(self, shallow: Tensor, gate: Tensor | None, context: Tensor) -> Tensor:
        """Local: gate the projected shallow map, add (or concatenate) the context, smooth (Eq. 5)."""
        if gate is not None:
            shallow = shallow * gate.to(shallow.dtype)
        both = torch.cat([shallow, context], dim=1) if self.kind.startswith("cat") else shallow + context
        return self.smooth(both)

    def attend(self, shallow: Tensor, deep: Tensor) -> Attention:
        """The attention of two whole projected maps."""
        if not self.pools:
            return Attention()
        return self.attention(F.adaptive_avg_pool2d(shallow, 1), F.adaptive_avg_pool2d(deep, 1))

    def forward(
        self,
        shallow: Tensor,
        deep: Tensor,
        zero_shallow: bool = False,
        zero_deep: bool = False,
        attention: Attention | None = None,
    ) -> tuple[Tensor, Tensor, Attention]:
        """Whole maps to (fused, context feature, attention).

        ``zero_*`` drop one summand ('one branch alone'); ``attention`` replaces that of the maps given.
        """
        s, d = self.project_shallow(shallow), self.project_deep(deep)
        attention = attention or self.attend(s, d)
        context = self.context(d, attention.deep, Place.whole(d), Place.whole(s))
        if zero_deep:
            context = torch.zeros_like(context)
        if zero_shallow:
            s = torch.zeros_like(s)
        return self.combine(s, attention.shallow, context), context, attention


def _mlp(channels: int, paper: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(GROUPS * GROUPS, channels), nn.ReLU(), nn.Linear(channels, channels)]
    if not paper:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
