"""Configurations that can be named; a configuration is not a trained model."""

from __future__ import annotations

from napari_isdnet.model.config import ISDNetConfig

PRESETS: dict[str, ISDNetConfig] = {
    "reference-resnet18": ISDNetConfig.of("reference", 7),
    "reference-resnet50": ISDNetConfig.of("reference", 7, deep="resnet50"),
    "paper-resnet18": ISDNetConfig.of("paper", 7),
    "lite": ISDNetConfig.lite(5),
}
"""By name; 7 classes as in DeepGlobe, the first data set of the paper, and 5 land-cover classes for ``lite``."""
