"""Names of the published implementation's checkpoints (ResNet18-v1c, DeepGlobe and Inria layouts) and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig

# The first that matches counts ('conv_sr' stands before 'sr_decoder'). The crossed names of the two auxiliary
# heads are put right here: the published 'conv_seg_aux_16' reads the 1/8 feature, 'conv_seg_aux_8' the 1/16 one.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.", "backbone."),
    (r"^decode_head\.conv_seg\.", "deep_classifier."),
    (r"^decode_head\.image_pool\.1\.", "head.pool."),
    (r"^decode_head\.aspp_modules\.", "head.branches."),
    (r"^decode_head\.bottleneck\.", "head.bottleneck."),
    (r"^auxiliary_head\.conv_seg\.", "aux_stage.out."),
    (r"^auxiliary_head\.convs\.0\.", "aux_stage.conv."),
    (r"^refine_head\.conv_seg_aux_16\.", "aux8."),
    (r"^refine_head\.conv_seg_aux_8\.", "aux16."),
    (r"^refine_head\.conv_seg\.", "classifier."),
    (r"^refine_head\.sr_decoder\.conv_sr\.", "super_resolution.head."),
    (r"^refine_head\.sr_decoder\.", "super_resolution."),
    (r"^refine_head\.(fuse8|fuse16)\.", r"\1."),
)
_PARTS: tuple[tuple[str, str], ...] = (
    (r"\.conv_bn_relu\.", ".conv."),
    (r"\.conv_out\.", ".out."),
)
_FUSION: tuple[tuple[str, str], ...] = (
    (r"\.g1$", ".alpha_shallow"),
    (r"\.g2$", ".alpha_deep"),
    (r"\.spatial_mlp\.", ".shallow_mlp."),
    (r"\.context_mlp\.", ".deep_mlp."),
    (r"\.spatial_att\.conv_bn_relu\.", ".shallow_conv."),
    (r"\.spatial_att\.conv_1x1\.", ".shallow_gate."),
    (r"\.context_att\.conv_bn_relu\.", ".deep_conv."),
    (r"\.context_att\.conv_1x1\.", ".deep_gate."),
    (r"\.context_head\.", ".context_conv."),
)
_STDC = "refine_head.stdc_net."
_ALIAS = re.compile(r"^refine_head\.stdc_net\.x(2|4|8|16)\.")


def rename_stdc(state: Mapping[str, Tensor], blocks: tuple[int, int]) -> dict[str, Tensor]:
    """``features.N.*`` of an STDC network to this package's stem / stage8 / stage16; later stages are left out."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.match(r"^(?:backbone\.)?features\.(\d+)\.(.+)$", key)
        if match is None:
            continue
        index, rest = int(match[1]), match[2].replace("conv_list.", "convs.").replace("avd_layer.", "reduce.")
        if index < 2:
            renamed[f"stem.{index}.{rest}"] = value
        elif index < 2 + blocks[0]:
            renamed[f"stage8.{index - 2}.{rest}"] = value
        elif index < 2 + sum(blocks):
            renamed[f"stage16.{index - 2 - blocks[0]}.{rest}"] = value
    return renamed


def rename_reference_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under this package's names; aliases (``stdc_net.x2`` ...) are dropped.

    Raises :class:`~napari_isdnet.exceptions.InputError` at a key that belongs to no part of the network.
    """
    stdc = {k[len(_STDC) :]: v for k, v in state.items() if k.startswith(_STDC + "features.")}
    renamed = {f"shallow.{k}": v for k, v in rename_stdc(stdc, (2, 2)).items()}
    for key, value in state.items():
        if key.startswith(_STDC + "features.") or _ALIAS.match(key):
            continue
        name = next((re.sub(old, new, key) for old, new in _RULES if re.match(old, key)), None)
        if name is None:
            raise InputError(f"'{key}' is no key of a published ISDNet checkpoint; only ISDNet checkpoints convert.")
        for old, new in _FUSION if name.startswith("fuse") else _PARTS:
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed


def config_from_reference(state: Mapping[str, Tensor]) -> ISDNetConfig:
    """The configuration that a published ResNet18 state dict belongs to; its classifier gives the class count."""
    key = "refine_head.conv_seg.conv_out.weight"
    if key not in state or "backbone.layer1.0.conv1.weight" not in state:
        raise InputError(f"This checkpoint lacks '{key}' or the ResNet backbone; it is no published ISDNet checkpoint.")
    if "backbone.layer1.0.conv3.weight" in state:
        raise InputError("This checkpoint has a ResNet50 backbone; only the published ResNet18 layout converts.")
    return ISDNetConfig.of("reference", int(state[key].shape[0]))
