"""Model files: what is written is what is read, and every kind of damage gets its sentence."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model import checkpoint
from napari_isdnet.model.checkpoint import (
    available_models,
    load_model,
    model_hash,
    read_header,
    save_model,
)
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import METADATA_KEY, ModelHeader
from napari_isdnet.model.isdnet import TRAINING_ONLY, ISDNet
from tests.network_tools import refusal, small

pytestmark = pytest.mark.usefixtures("own_cache")


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


# ------------------------------------------------------------------------------------------------- round trip


def test_full_precision_round_trip_gives_the_same_logits(model: ISDNet, tmp_path: Path) -> None:
    path = save_model(model, tmp_path / "m.safetensors", half=False)
    loaded = load_model(path)
    x = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
    assert not loaded.training
    assert loaded.header == replace(model.header, config=model.config)


@pytest.mark.parametrize("changes", [{}, {"deep": "mit_b0", "deep_head": "segformer"}, {"deep": "convnext_atto"}])
def test_loading_draws_no_random_numbers(tmp_path: Path, changes: dict[str, str]) -> None:
    network = ISDNet(small(**changes)).eval()  # type: ignore[arg-type]
    path = save_model(network, tmp_path / "m.safetensors", half=False)
    state = torch.get_rng_state()
    loaded = load_model(path, training=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(loaded.buffers(), network.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    ISDNet(network.config)
    assert not torch.equal(torch.get_rng_state(), state)  # a new one does


def test_half_keeps_batch_norm_and_biases_exact(model: ISDNet, saved: Path) -> None:
    stored = load_file(saved)
    loaded = load_model(saved, training=True)
    found = loaded.state_dict()
    assert {t.dtype for t in found.values()} == {torch.float32, torch.int64}
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim >= 2:
            assert stored[key].dtype == torch.float16
            assert torch.allclose(value, found[key], rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(value, found[key]), key
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


def test_a_file_is_on_the_disk_before_it_has_its_name(
    model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("sync", os.fstat(file).st_ino)), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", os.stat(a).st_ino)), rename(a, b))[1])
    path = save_model(model, tmp_path / "new.safetensors")
    assert done == [("sync", path.stat().st_ino), ("rename", path.stat().st_ino)]
    assert path.stat().st_mode & 0o600 == 0o600


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


def test_no_untrained_network_is_a_model() -> None:
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
        ({"classes": [{"name": n, "color": [0, 0, "x"]} for n in "abc"]}, "three numbers 0..255"),
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
