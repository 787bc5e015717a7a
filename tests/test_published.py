"""A checkpoint as people have it, through the shell: converted, then a scene segmented with it.

The weights are drawn as for the parity figures; the biases of the last layer are moved so that every class occurs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from napari_isdnet import cli
from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.streaming import StreamOptions, WholeImage
from napari_isdnet.engine.windowed import WindowPredictor
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.reference import config_from_reference, rename_reference_keys
from napari_isdnet.window import Window
from tests.test_parity import GOLDEN, drawn

CPU = Placement(torch.device("cpu"), torch.float32)
CLASSES = ("unknown", "urban", "agriculture", "range", "forest", "water", "barren")
BIAS = "refine_head.conv_seg.conv_out.bias"
SIZE = (136, 200)
Shell = Callable[..., tuple[int, str, str]]


def normalised(rgb: np.ndarray) -> torch.Tensor:
    """(h, w, 3) on the 0..255 scale to (1, 3, h, w), by hand."""
    values = (rgb.astype(np.float32) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def scene_of(shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(ProceduralWorld(shape).read(Window.whole(shape)))


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, torch.Tensor], ISDNet]:
    """The state dict in the published layout, and the network it belongs to."""
    shapes = json.loads((GOLDEN / "deepglobe_r18_state_dict_shapes.json").read_text())
    state = {key: drawn(key, tuple(shape)) for key, shape in shapes.items()}
    model = ISDNet(config_from_reference(state))
    model.load_state_dict(rename_reference_keys(state))
    model.eval()
    with torch.inference_mode():
        state[BIAS] = state[BIAS] - model(normalised(scene_of(SIZE))).logits.mean((0, 2, 3)).clone()
    model.load_state_dict(rename_reference_keys(state))
    return state, model


@pytest.fixture(scope="module")
def checkpoint(published: tuple[dict[str, torch.Tensor], ISDNet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "iter_80000.pth"
    torch.save({"meta": {"CLASSES": CLASSES, "iter": 80000}, "state_dict": published[0]}, path)
    return path


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run(cli.app, [str(a) for a in arguments], "napari-isdnet")
        return code, *capfd.readouterr()

    return call


def refused(ran: tuple[int, str, str], *words: str) -> None:
    code, out, err = ran
    assert (code, out) == (1, ""), err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_convert_then_segment_gives_the_class_map_of_one_forward(
    shell: Shell, published: tuple[dict[str, torch.Tensor], ISDNet], checkpoint: Path, tmp_path: Path
) -> None:
    model_file = tmp_path / "deepglobe.safetensors"
    code, out, err = shell("convert", checkpoint, "--output", model_file, "--json")
    assert code == 0, err
    assert json.loads(out)["classes"] == list(CLASSES)
    image = scene_of(SIZE)
    Image.fromarray(image).save(tmp_path / "scene.png")
    with torch.inference_mode():
        logits = published[1](normalised(image)).logits[0]
    converted = load_model(model_file)
    with torch.inference_mode():
        assert torch.equal(converted(normalised(image)).logits[0], logits)
    region = Window(17, 24, 111, 161)
    roi = "17,24,111,161"
    arguments = ("--model", model_file, "--format", "png", "--precision", "float32", "--device", "cpu", "--window", 224)
    code, out, err = shell(
        "segment", tmp_path / "scene.png", *arguments, "--roi", roi, "-o", tmp_path / "out", "--json"
    )
    assert code == 0, err
    facts = json.loads(out)
    with Image.open(facts["outputs"]["labels"]) as file:
        labels = np.asarray(file)
    assert len(np.unique(labels)) > 3
    best = logits.topk(2, dim=0).values
    sure = ((best[0] - best[1]) > 2e-3 * logits.std()).numpy()[region.slices]
    expected = logits.argmax(0).numpy()[region.slices]
    assert (labels == expected)[sure].all()
    assert (labels != expected).mean() < 1e-3
    assert facts["pixels"] == region.area
    assert sum(facts["class_pixels"][name] for name in CLASSES) == region.area
    with Image.open(facts["outputs"]["overlay"]) as overlay:
        assert overlay.size == (161, 111)


def test_checkpoints_that_cannot_be_used_leave_nothing(
    shell: Shell, published: tuple[dict[str, torch.Tensor], ISDNet], checkpoint: Path, tmp_path: Path
) -> None:
    state, output = published[0], tmp_path / "out" / "m.safetensors"
    kept = {key: value for key, value in state.items() if "fuse16" not in key}
    faults: dict[str, tuple[object, str]] = {
        "missing": ({"state_dict": kept}, "weights are missing"),
        "wrong": ({"state_dict": {"conv.weight": torch.zeros(3, 3)}}, "no published ISDNet checkpoint"),
        "bottleneck": (
            {"state_dict": {**state, "backbone.layer1.0.conv3.weight": torch.zeros(1)}},
            "only the published ResNet18 layout converts",
        ),
        "empty": ({"epoch": 3}, "no 'state_dict' of tensors"),
    }
    for name, (data, words) in faults.items():
        torch.save(data, tmp_path / f"{name}.pth")
        refused(
            shell("convert", tmp_path / f"{name}.pth", "-o", output), f"{name}.pth" if name == "missing" else "", words
        )
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    refused(shell("convert", tmp_path / "cut.pth", "-o", output), "cut.pth", "PyTorch checkpoint")
    refused(shell("convert", checkpoint, "-o", tmp_path / "m.pth"), "must be named *.safetensors")
    assert not output.parent.exists()
    # A checkpoint is no model file, and a model file is no checkpoint.
    refused(shell("segment", tmp_path / "a.tif", "-o", tmp_path / "o", "-m", checkpoint), "napari-isdnet convert")
    assert not (tmp_path / "o").exists()


def test_an_existing_model_is_kept_unless_told(shell: Shell, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"mine")
    refused(shell("convert", checkpoint, "-o", output), "exists", "--overwrite")
    assert output.read_bytes() == b"mine"
    assert shell("convert", checkpoint, "-o", output, "--overwrite")[0] == 0
    assert load_model(output).config.num_classes == 7


# ------------------------------------------------------------------------------------------------- at size

LARGE = (2048, 3072)


def streamed(model: ISDNet, source: ImageSource, exact: bool) -> np.ndarray:
    ready = prepare(model, CPU)
    reader = PatchReader(source, IntensityPolicy.from_source(source), model)
    whole = WholeImage(ready, reader, CPU, StreamOptions(core=1024, exact=exact))
    for _ in whole.prepare():
        pass
    return whole.labels(Window.whole(source.shape))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_figures_of_the_readme(published: tuple[dict[str, torch.Tensor], ISDNet], tmp_path: Path) -> None:
    """Shares of labels that differ from one forward; ``pytest -m slow -rP tests/test_published.py`` prints them."""
    model = published[1]
    Image.fromarray(scene_of(LARGE)).save(tmp_path / "scene.png")
    source = open_source(tmp_path / "scene.png")
    with torch.inference_mode():
        coarse = model.coarse_logits(normalised(source.read(Window.whole(LARGE))))
        one = F.interpolate(coarse, size=LARGE, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    found = {"classes that occur": len(np.unique(one))}
    shares = {}
    for name, exact in (("float32 maps", True), ("float16 maps", False)):
        shares[name] = float((streamed(model, source, exact) != one).mean())
    reader = PatchReader(source, IntensityPolicy.from_source(source), model)
    tiles = WindowPredictor(prepare(model, CPU), reader, CPU, window=1024, overlap=128)
    strips = [tiles.labels(Window(top, 0, 256, LARGE[1])) for top in range(0, LARGE[0], 256)]
    shares["independent tiles of 1024, overlap 128"] = float((np.concatenate(strips) != one).mean())
    source.close()
    print(f"{LARGE[0]} x {LARGE[1]}: {found}")
    for name, share in shares.items():
        print(f"{name}: {share:.3g} of the labels differ from one forward")
    assert found["classes that occur"] > 3
    assert shares["float32 maps"] < 1e-5
    assert shares["float16 maps"] < 2e-4
    assert shares["independent tiles of 1024, overlap 128"] > 0.01
