"""Published checkpoints become model files; what is none, and what would run code, is refused in a sentence."""

from __future__ import annotations

import json
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.convert import convert
from tests.network_tools import refusal

SHAPES = Path(__file__).parent / "golden" / "deepglobe_r18_state_dict_shapes.json"


def published_state(num_classes: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict in the published layout with other weights at every key, aliases included."""
    shapes = json.loads(SHAPES.read_text())
    state: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        alias = re.match(r"refine_head\.stdc_net\.x(2|4|8|16)\.", key)
        if len(shape) > 0 and shape[0] == 7:
            shape = [num_classes, *shape[1:]]
        rs = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
        value = rs.uniform(0.5, 1.5, shape) if key.endswith("running_var") else rs.normal(0, 0.05, shape)
        kind = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        state[prefix + key] = torch.zeros(shape, dtype=kind) if alias else torch.as_tensor(value).to(kind)
    return state


@pytest.mark.long
def test_convert_reads_any_class_count_module_prefix_and_names(tmp_path: Path) -> None:
    source, target = tmp_path / "iter.pth", tmp_path / "out.safetensors"
    meta = {
        "CLASSES": ("background", "building"),
        "PALETTE": [[0, 0, 0], [255, 0, 0]],
        # What training frameworks leave: a numpy scalar.
        "hook_msgs": {"best_score": np.float64(0.71)},
    }
    state = published_state(2, "module.")
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"lr": 0.01}}, source)
    header = convert(source, target, licence="Apache-2.0")
    assert [(c.name, c.hex) for c in header.classes] == [("background", "#000000"), ("building", "#ff0000")]
    loaded = load_model(target, training=True)
    assert loaded.config == ISDNetConfig.of("reference", 2)
    assert loaded.header.lineage == {"converted_from": "iter.pth"}
    assert loaded.header.licence == "Apache-2.0"
    weights = loaded.state_dict()
    assert torch.equal(weights["classifier.out.weight"], state["module.refine_head.conv_seg.conv_out.weight"])
    assert torch.equal(weights["fuse8.alpha_deep"], state["module.refine_head.fuse8.g2"])


def test_convert_names_what_does_not_fit(tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"

    def fails(data: object, words: str, **options) -> None:
        torch.save(data, tmp_path / "x.pth")
        with pytest.raises(InputError, match=words) as caught:
            convert(tmp_path / "x.pth", target, **options)
        assert "\n" not in str(caught.value)
        assert not target.exists()

    state = published_state(3)
    fails({"state_dict": state}, "2 names were given", classes=classes_from(["a", "b"]))
    fails({"state_dict": {k: v for k, v in state.items() if "fuse8.g1" not in k}}, "1 weights are missing")
    fails({**state, "backbone.layer9.weight": torch.zeros(3)}, "1 are unknown")
    fails({**state, "backbone.stem.0.weight": torch.zeros(3)}, r"of shape \(3,\)")
    fails({"weights": 3}, "no 'state_dict' of tensors")
    fails([1, 2], "no 'state_dict' of tensors")
    fails({"layer.weight": torch.zeros(3)}, "no published ISDNet checkpoint")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle.dump"])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path, plain: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "was-here"
    if plain:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(trace)}, protocol=2))
    else:
        torch.save({"state_dict": Bomb(trace)}, path)
    with pytest.raises(InputError, match="holds more than weights"):
        convert(path, tmp_path / "out.safetensors")
    assert "napari-isdnet convert" in refusal(path)
    renamed = path.rename(tmp_path / "evil.safetensors")
    assert "napari-isdnet convert" in refusal(renamed)
    assert not trace.exists()
    # The bomb is a real one: unpickled without care it goes off.
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"abc", b"PK\x03\x04 not a zip"])
def test_convert_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="PyTorch checkpoint") as caught:
        convert(path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)


def test_convert_of_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="PyTorch checkpoint"):
        convert(path, tmp_path / "out.safetensors")
