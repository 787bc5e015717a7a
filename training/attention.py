"""SegFormer's attention without the matrix of all weights, which a scene of 8 megapixels would take 17 GB for.

The library multiplies queries and keys out; torch's fused kernel gives the same values in the memory of its result
(Dao et al., *FlashAttention*, NeurIPS 2022). So SegFormer is trained, judged on whole scenes and timed at its best.
"""

from __future__ import annotations

from functools import cache

import torch.nn.functional as F
from torch import Tensor, nn


def fuse_attention(net: nn.Module) -> nn.Module:
    """Give every attention of segmentation_models_pytorch's Mix Transformer in ``net`` the fused kernel; returns it."""
    fused = _fused()
    for module in net.modules():
        if isinstance(module, fused.__bases__[0]):
            module.__class__ = fused
    return net


@cache
def _fused() -> type[nn.Module]:
    """The class, made when it is asked for: the library is an extra."""
    from segmentation_models_pytorch.encoders.mix_transformer import Attention

    class FusedAttention(Attention):  # type: ignore[misc]
        """The same weights and values, ``softmax(q k / sqrt(d)) v`` in one kernel."""

        def forward(self, x: Tensor, height: int, width: int) -> Tensor:
            """Tokens (B, H * W, C), to the same shape."""
            batch, count, channels = x.shape
            parts = self.num_heads, channels // self.num_heads
            source = x
            if self.sr_ratio > 1:
                source = self.sr(x.transpose(1, 2).reshape(batch, channels, height, width))
                source = self.norm(source.flatten(2).transpose(1, 2))
            query = self.q(x).reshape(batch, count, *parts).transpose(1, 2)
            key, value = self.kv(source).reshape(batch, -1, 2, *parts).permute(2, 0, 3, 1, 4)
            dropped = self.attn_drop.p if self.training else 0.0
            found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped, scale=self.scale)
            return self.proj_drop(self.proj(found.transpose(1, 2).reshape(batch, count, channels)))  # type: ignore[no-any-return]

    return FusedAttention
