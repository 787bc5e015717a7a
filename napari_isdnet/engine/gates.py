"""What the means over a whole image say to the network: the pools of its context head, and how its fusions weigh."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from napari_isdnet.engine.local import LocalNetwork
from napari_isdnet.engine.means import Means
from napari_isdnet.model.fusion import Attention


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
