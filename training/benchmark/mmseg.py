"""Baselines of OpenMMLab's segmentation library (extra ``baselines``), where it is installed."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_isdnet_training.registry import Network
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError


@dataclass(frozen=True)
class MMSegModel:
    """A network of the library: its configuration file (relative to its ``configs``)."""

    description: str
    config: str
    multiple: int = 64


MMSEG: dict[str, MMSegModel] = {
    "fcn-r50": MMSegModel("FCN, ResNet50", "_base_/models/fcn_r50-d8.py"),
    "deeplabv3-r50": MMSegModel("DeepLabv3, ResNet50", "_base_/models/deeplabv3_r50-d8.py"),
    "deeplabv3plus-r50": MMSegModel("DeepLabv3+, ResNet50", "_base_/models/deeplabv3plus_r50-d8.py"),
    "pspnet-r50": MMSegModel("PSPNet, ResNet50", "_base_/models/pspnet_r50-d8.py"),
    "stdc1": MMSegModel("STDC-1", "_base_/models/stdc.py"),
    "bisenetv1-r18": MMSegModel("BiSeNetV1, ResNet18", "_base_/models/bisenetv1_r18-d32.py"),
    "bisenetv2": MMSegModel("BiSeNetV2", "_base_/models/bisenetv2.py"),
    "icnet-r50": MMSegModel("ICNet, ResNet50", "_base_/models/icnet_r50-d8.py", 96),
    "pidnet-s": MMSegModel("PIDNet-S", "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py"),
    "ddrnet-23-slim": MMSegModel("DDRNet-23-slim", "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"),
    "pointrend-r50": MMSegModel("PointRend, ResNet50", "_base_/models/pointrend_r50.py"),
}


def missing() -> str | None:
    """Why these networks are not available here; None where they are."""
    for module in ("mmseg", "mmengine", "mmcv"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (the extra 'baselines' brings it)"
    return None


class _Whole(nn.Module):
    """(B, 3, H, W) to logits (B, K, H, W) of one of the library's segmentors; auxiliary heads are dropped."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[-2:])
        meta = [{"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "padding_size": [0, 0, 0, 0]}]
        logits: Tensor = self.segmentor.encode_decode(x, meta * len(x))  # type: ignore[operator]
        return logits


def mmseg_network(name: str, num_classes: int) -> Network:
    """Build a network of the library from scratch, for inference; InputError says why it cannot be had."""
    reason = missing()
    if reason is not None:
        raise InputError(f"Network '{name}' is not available here: {reason}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmseg
        import mmseg.models
        from mmengine.config import Config
        from mmseg.registry import MODELS

        entry = MMSEG[name]
        path = Path(mmseg.__file__).parent / ".mim" / "configs" / entry.config
        if not path.is_file():
            raise InputError(f"Network '{name}' is not available here: this version of mmseg has no {entry.config}.")
        model = Config.fromfile(path).model
        _adapt(model, num_classes)
        model.pop("auxiliary_head", None)
        model.pop("pretrained", None)
        model.data_preprocessor = None
        model.test_cfg = {**(model.get("test_cfg") or {}), "mode": "whole"}
        _point_sampling()
        segmentor = MODELS.build(model)
    return Network(name, _Whole(segmentor), None, entry.multiple)


def _point_sampling() -> None:
    """PointRend samples features at points: the compiled operator is grid sampling, which torch has."""
    import torch.nn.functional as F
    from mmseg.models.decode_heads import point_head

    if hasattr(point_head, "point_sample") and point_head.point_sample is not None:
        return

    def point_sample(x: Tensor, points: Tensor, align_corners: bool = False, **settings: Any) -> Tensor:
        grid = (points * 2 - 1).unsqueeze(2)
        return F.grid_sample(x, grid, align_corners=align_corners, **settings).squeeze(3)

    point_head.point_sample = point_sample


def _adapt(part: Any, num_classes: int) -> None:
    """One process, no downloads: plain batch norm, no initial weights, this many classes."""
    if isinstance(part, dict):
        for key in list(part):
            if key in ("init_cfg", "pretrained"):
                part[key] = None
            elif key == "num_classes":
                part[key] = num_classes
            elif key == "type" and part[key] == "SyncBN":
                part[key] = "BN"
            else:
                _adapt(part[key], num_classes)
    elif isinstance(part, list | tuple):
        for item in part:
            _adapt(item, num_classes)
