"""Model files: what is written is what is read, and every kind of damage gets its sentence."""

from __future__ import annotations

import json
import os
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model import checkpoint
from napari_isdnet.model.checkpoint import (
    available_models,
    default_model,
    load_model,
    model_hash,
    read_header,
    save_model,
)
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.convert import convert
from napari_isdnet.model.header import METADATA_KEY, ModelHeader
from napari_isdnet.model.isdnet import TRAINING_ONLY, ISDNet
from tests.network_tools import small

SHAPES = Path(__file__).parent / "golden" / "deepglobe_r18_state_dict_shapes.json"


def small_config() -> ISDNetConfig:
    return ISDNetConfig.of("reference", 3, deep="tf_efficientnet_lite0", shallow="narrow", channels=32, deep_stride=16)


@pytest.fixture(scope="module")
def model() -> ISDNet:
    torch.manual_seed(0)
    network = ISDNet(small_config())
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.123456789)
    network.header = ModelHeader.default(
        network.config,
        classes=classes_from([("ground", "#102030"), ("water", "#0000ff"), ("Straße", "#ffffff")]),
        name="test",
        pixel_size=0.3,
        window=512,
        licence="CC0",
        lineage={"seed": 7},
        figures={"miou": 0.5},
    )
    return network.eval()


@pytest.fixture(scope="module")
def written(model: ISDNet, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_model(model, tmp_path_factory.mktemp("model") / "model.safetensors").read_bytes()


@pytest.fixture
def saved(written: bytes, tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(written)
    return tmp_path / "model.safetensors"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))


def edited(path: Path, tensors=None, **header) -> Path:
    """The file with changed header fields (None removes one) or changed weights."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    data = json.loads(metadata[METADATA_KEY])
    for key, value in header.items():
        data.pop(key) if value is None else data.update({key: value})
    target = path.with_name("edited.safetensors")
    save_file(load_file(path) if tensors is None else tensors, target, metadata={METADATA_KEY: json.dumps(data)})
    return target


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# ------------------------------------------------------------------------------------------------- round trip


def test_full_precision_round_trip_gives_the_same_logits(model: ISDNet, tmp_path: Path) -> None:
    path = save_model(model, tmp_path / "m.safetensors", half=False)
    loaded = load_model(path)
    x = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
    assert not loaded.training
    assert loaded.header == replace(model.header, config=model.config)


def test_half_keeps_batch_norm_and_biases_exact(model: ISDNet, saved: Path) -> None:
    stored = load_file(saved)
    loaded = load_model(saved, training=True)
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float32, torch.int64}
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim >= 2:
            assert stored[key].dtype == torch.float16
            assert torch.allclose(value, loaded.state_dict()[key], rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(value, loaded.state_dict()[key]), key
    assert saved.stat().st_size < 0.6 * 4 * sum(v.numel() for v in model.state_dict().values())


def test_weights_that_float16_cannot_hold_stay_float32(model: ISDNet, tmp_path: Path) -> None:
    network = ISDNet(model.config)
    network.classifier.out.weight.data[0, 0] = 1e5
    loaded = load_model(save_model(network, tmp_path / "m.safetensors"))
    assert float(loaded.classifier.out.weight.data[0, 0].max()) == 1e5


def test_training_heads_are_dropped_unless_asked_for(model: ISDNet, saved: Path) -> None:
    plain, full = load_model(saved), load_model(saved, training=True)
    assert set(full.state_dict()) == set(model.state_dict())
    assert set(plain.state_dict()) < set(full.state_dict())
    assert not any(key.startswith(("aux", "super_resolution", "deep_classifier")) for key in plain.state_dict())
    target = torch.zeros(2, 64, 64, dtype=torch.int64)
    assert torch.isfinite(full.train().losses(torch.randn(2, 3, 64, 64), target)["total"])


def test_saving_without_training_heads(model: ISDNet, tmp_path: Path) -> None:
    path = save_model(model, tmp_path / "m.safetensors", training=False)
    assert set(load_file(path)) == set(load_model(path).state_dict())
    assert read_header(path).config == model.config.inference()


def test_saving_an_inference_model_again_is_honest_about_its_heads(saved: Path, tmp_path: Path) -> None:
    again = save_model(load_model(saved), tmp_path / "again.safetensors")
    assert read_header(again).config == small_config().inference()
    assert read_header(again).classes == read_header(saved).classes
    assert model_hash(again) == model_hash(saved)


def test_an_interrupted_write_leaves_the_old_file_and_no_scraps(
    model: ISDNet, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fails(tensors, target, metadata):
        Path(target).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(InputError, match=r"cannot be written \(No space"):
        save_model(model, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


# ------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "config",
    [
        small("reference", 3),
        small("paper", 3),
        small("reference", 3, deep="tf_efficientnet_lite0", shallow="tf_efficientnet_lite0", deep_stride=16),
        small("reference", 3, branches="deep"),
        small("reference", 3, branches="shallow"),
        small("reference", 3, fusion="cat_ca", deep_head="pspnet"),
    ],
    ids=lambda c: f"{c.flavour} {c.branches} {c.fusion}",
)
def test_names_tell_what_only_training_needs(config: ISDNetConfig) -> None:
    whole, inference = (set(ISDNet(c).state_dict()) for c in (config, config.inference()))
    assert {key for key in whole if key.startswith(TRAINING_ONLY)} == whole - inference
    assert not any(key.startswith(TRAINING_ONLY) for key in inference)


def test_hash_follows_what_a_prediction_depends_on(model: ISDNet, tmp_path: Path) -> None:
    path = save_model(model, tmp_path / "m.safetensors", half=False)
    first = model_hash(model)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first == model_hash(path) == model_hash(load_model(path)) == model_hash(load_model(path, training=True))
    other = load_model(path)
    other.header = replace(other.header, name="renamed", figures={"miou": 0.9})
    assert model_hash(other) == first
    other.header = replace(other.header, mean=(0.0, 0.0, 0.0))
    assert model_hash(other) != first
    other = load_model(path)
    with torch.no_grad():
        other.classifier.out.bias[0] += 1e-3
    assert model_hash(other) != first


# ------------------------------------------------------------------------------------------------- names


def test_models_in_the_cache_folder_are_known_by_name(model: ISDNet, tmp_path: Path) -> None:
    save_model(model, tmp_path / "cache" / "models" / "mine.safetensors")
    assert available_models()["mine"] == tmp_path / "cache" / "models" / "mine.safetensors"
    assert load_model("mine").header.name == "test"


def test_no_untrained_network_is_ever_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "DEFAULT_MODEL", None)
    with pytest.raises(InputError, match=r"untrained network says nothing.*--model"):
        default_model()
    assert "without trained weights" in refusal("reference-resnet18")


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    assert "There is no model 'nosuch'" in refusal("nosuch")
    assert "is a folder" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_files(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "no whole .safetensors file" in refusal(saved)


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "no whole .safetensors file" in refusal(path)


def test_a_file_without_our_header(saved: Path) -> None:
    save_file(load_file(saved), saved)
    assert "no napari-isdnet header" in refusal(saved)


def test_weights_that_do_not_fit(saved: Path) -> None:
    whole = load_file(saved)
    key = "classifier.out.weight"
    assert f"lacks weights ('{key}')" in refusal(edited(saved, {k: v for k, v in whole.items() if k != key}))
    assert "has unknown weights ('extra')" in refusal(edited(saved, {**whole, "extra": torch.zeros(3)}))
    assert "of shape (2, 2)" in refusal(edited(saved, {**whole, key: torch.zeros(2, 2)}))
    assert "not a kind" in refusal(edited(saved, {**whole, key: whole[key].to(torch.int64)}))
    broken = whole[key].clone()
    broken[0, 0] = float("nan")
    assert f"NaN or infinity in '{key}'" in refusal(edited(saved, {**whole, key: broken}))


def test_nan_weights_are_not_saved(model: ISDNet, tmp_path: Path) -> None:
    network = ISDNet(model.config)
    network.classifier.out.bias.data[0] = float("inf")
    with pytest.raises(InputError, match="training diverged"):
        save_model(network, tmp_path / "m.safetensors")
    assert not any(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "upgrade napari-isdnet"),
        ({"format_version": "1"}, "'format_version' must be a whole number"),
        ({"classes": None}, "lacks classes"),
        ({"colour": "red"}, "does not know: colour"),
        ({"classes": [{"name": "a", "color": [0, 0, 0]}]}, "3 classes needs as many class names, got 1"),
        ({"classes": [{"name": "a"}]}, "list of objects with a name and a color"),
        ({"classes": [{"name": n, "color": [0, 0, 300]} for n in "abc"]}, "three numbers 0..255"),
        ({"classes": [{"name": "a", "color": [0, 0, 0]}] * 3}, "Class names must differ"),
        ({"classes": [{"name": n, "color": [0, 0, "x"]} for n in "abc"]}, "cannot be read"),
        ({"config": {"num_classes": 3, "deep": "nosuchbackbone"}}, "nosuchbackbone"),
        ({"config": {"num_classes": 3, "wings": 2}}, "wings"),
        ({"config": [1]}, "'config' must be a JSON object"),
        ({"flavour": "paper"}, "flavour 'paper'"),
        ({"mean": [1, 2]}, "'mean' must be three finite numbers"),
        ({"std": [1, 0, 1]}, "'std' must be above zero"),
        ({"std": [1, True, 1]}, "'std' must be three finite numbers"),
        ({"pixel_size": -1}, "'pixel_size' must be metres above zero"),
        ({"window": 31.5}, "'window' must be a whole number"),
        ({"lineage": [1]}, "'lineage' must be a JSON object"),
        ({"licence": 3}, "'licence' must be a text"),
    ],
)
def test_damaged_headers(saved: Path, change: dict, words: str) -> None:
    message = refusal(edited(saved, **change))
    assert words in message
    assert "edited.safetensors" in message or "backbone" in message


def test_header_that_is_no_json(saved: Path) -> None:
    for text, words in (("{", "not valid JSON"), ("[]", "must be a JSON object")):
        save_file(load_file(saved), saved, metadata={METADATA_KEY: text})
        assert words in refusal(saved)


# ------------------------------------------------------------------------------------------------- convert


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
