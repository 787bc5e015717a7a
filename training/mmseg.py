"""Baselines of OpenMMLab's segmentation library (extra ``baselines``), where it is installed: to train and to time."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError, MissingExtra


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

_EDGES = "STDCHead"


def missing() -> str | None:
    """Why these networks are not available here; None where they are."""
    for module in ("mmseg", "mmengine", "mmcv"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (the extra 'baselines' brings it)"
    return None


def require(name: str) -> None:
    """Raise :class:`MissingExtra` where the library, and with it network ``name``, is not installed."""
    if missing() is not None:
        raise MissingExtra(f"Network '{name}'", "onedl-mmsegmentation", "baselines")


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without the library's remark that sizes of 8 n + 1 would suit its interpolation better."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "When align_corners=True")
        yield


class MMSeg(nn.Module):
    """One of the library's segmentors: (B, 3, H, W) to logits (B, K, H, W), and its training losses."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of the main head."""
        shape = tuple(x.shape[-2:])
        meta = [{"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "padding_size": [0, 0, 0, 0]}]
        with _no_advice():
            logits: Tensor = self.segmentor.encode_decode(x, meta * len(x))  # type: ignore[operator]
        return logits

    def losses(self, x: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The library's losses of every head by name, and ``total``; ``target`` (B, H, W) with 255 ignored.

        ``seg`` is that of the main head. Class weights (K,) go to the heads that tell these classes apart: STDC's
        detail head sees edges of the mask instead, and takes that of an ignored region for one of them.
        """
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(gt_sem_seg=PixelData(data=t[None])) for t in target]
        features = self.segmentor.extract_feat(x)  # type: ignore[operator]
        found: dict[str, Tensor] = {}
        for name, head in self._heads():
            _weigh(head, weight)
            with _no_advice():
                values = head.loss(features, samples, None)
            found[name] = torch.stack([v for k, v in values.items() if k.startswith("loss")]).sum()
        return {**found, "total": torch.stack(list(found.values())).sum()}

    def _heads(self) -> list[tuple[str, Any]]:
        extra = getattr(self.segmentor, "auxiliary_head", None)
        heads = list(extra) if isinstance(extra, nn.ModuleList) else [extra] if extra is not None else []
        named = [("detail" if type(h).__name__ == _EDGES else f"auxiliary_{n}", h) for n, h in enumerate(heads, 1)]
        return [("seg", self.segmentor.decode_head), *named]


def _weigh(head: Any, weight: Tensor | None) -> None:
    if type(head).__name__ != _EDGES:
        head.loss_decode.class_weight = None if weight is None else weight.tolist()


def build_mmseg(name: str, num_classes: int, auxiliary: bool = False) -> MMSeg:
    """Build a network of the library from scratch; without its training-only heads unless ``auxiliary``.

    Raises :class:`InputError` where it cannot be had, saying why.
    """
    require(name)
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
        if not auxiliary:
            model.pop("auxiliary_head", None)
        model.pop("pretrained", None)
        model.data_preprocessor = None
        model.test_cfg = {**(model.get("test_cfg") or {}), "mode": "whole"}
        _point_sampling()
        return MMSeg(MODELS.build(model))


def _point_sampling() -> None:
    """PointRend samples features at points: the compiled operator is grid sampling, which torch has."""
    import torch.nn.functional as F
    from mmseg.models.decode_heads import point_head

    if hasattr(point_head, "point_sample") and point_head.point_sample is not None:
        return

    def point_sample(x: Tensor, points: Tensor, align_corners: bool = False, **settings: Any) -> Tensor:
        grid = (points * 2 - 1).unsqueeze(2)
        # In float32 whatever the features are: bfloat16 has too few bits for a position.
        found = F.grid_sample(x.float(), grid.float(), align_corners=align_corners, **settings)
        return found.squeeze(3).to(x.dtype)

    point_head.point_sample = point_sample


def _adapt(part: Any, num_classes: int) -> None:
    """One process, no downloads: plain batch norm, no initial weights, this many classes."""
    if isinstance(part, dict):
        for key in list(part):
            if key in ("init_cfg", "pretrained"):
                part[key] = None
            elif key == "num_classes":
                # The detail head of STDC tells edges from the rest, whatever the classes.
                part[key] = part[key] if part.get("type") == _EDGES else num_classes
            elif key == "ignore_index":
                part[key] = IGNORE_INDEX
            elif key == "type" and part[key] == "SyncBN":
                part[key] = "BN"
            else:
                _adapt(part[key], num_classes)
    elif isinstance(part, list | tuple):
        for item in part:
            _adapt(item, num_classes)
