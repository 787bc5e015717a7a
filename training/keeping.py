"""Where nobody has painted, a fine-tuned model goes on saying what the model before said.

Learning without forgetting (Li and Hoiem 2017) on the image itself: a few thousand painted pixels decide about
themselves, and pull everything else along only as far as they must.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.model.isdnet import ISDNet


class Keeping:
    """The model as it was, and the loss between its classes and those of the model that learns.

    Only classes that both have are compared, among themselves, so that a new class is free to appear.
    """

    def __init__(self, before: ISDNet, old: Sequence[str], new: Sequence[str]) -> None:
        shared = [name for name in new if name in old]
        self.active = len(shared) > 1
        self._old, self._new = [old.index(n) for n in shared], [list(new).index(n) for n in shared]
        self.before = copy.deepcopy(before).eval().requires_grad_(False)

    def loss(self, logits: Tensor, image: Tensor, target: Tensor, trunk: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Mean KL divergence over the unlabelled cells at the stride of ``logits``, which the learning model says.

        ``image`` (B, 3, H, W) is what it says them of, ``target`` (B, H, W) has 255 where nothing is painted;
        ``trunk``: both models share it, so that it need not be computed again.
        """
        with torch.no_grad():
            said = self.before.coarse_logits(image) if trunk is None else self.before.from_trunk(trunk)[0]
            wanted = said[:, self._old].float().softmax(1)
            free = F.interpolate((target != IGNORE_INDEX)[:, None].float(), size=logits.shape[2:], mode="area") == 0
        own = logits[:, self._new].float().log_softmax(1)
        divergence = F.kl_div(own, wanted, reduction="none").sum(1, keepdim=True)
        return (divergence * free).sum() / free.sum().clamp(min=1)
