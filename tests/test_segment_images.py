"""What the image of a segmentation holds and lacks: samples, transparency, damage, maps that a format cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_isdnet.engine.streaming import WholeImage
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import TileError
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.network_tools import picture, source_of
from tests.segment_tools import four_classes, labels, run


@pytest.fixture(scope="module")
def model() -> ISDNet:
    return four_classes()


def test_transparent_nodata_and_nan_pixels_become_255(model: ISDNet, tmp_path: Path) -> None:
    rgb = picture((96, 130))
    alpha = np.full((96, 130, 1), 255, np.uint8)
    alpha[10:20, 30:50] = 0
    tifffile.imwrite(
        tmp_path / "rgba.tif", np.concatenate([rgb, alpha], -1), photometric="rgb", extrasamples=["unassalpha"]
    )
    out = labels(run(tmp_path / "rgba.tif", model, tmp_path / "o"))
    np.testing.assert_array_equal(out == 255, alpha[..., 0] == 0)

    floats = rgb.astype(np.float32) / 255
    floats[5:9, 7:11, 1] = np.nan
    np.save(tmp_path / "nan.npy", floats)
    out = labels(run(tmp_path / "nan.npy", model, tmp_path / "o", contrast=(0, 1)))
    assert (out[5:9, 7:11] == 255).all()
    assert (out == 255).sum() == 16


@pytest.mark.parametrize("kind", ["uint16", "grey", "four"])
def test_other_samples_are_segmented(model: ISDNet, tmp_path: Path, kind: str) -> None:
    rgb = picture((96, 130))
    made = {
        "uint16": rgb.astype(np.uint16) * 200,
        "grey": rgb[..., 0],
        "four": np.concatenate([rgb, rgb[..., :1]], -1).transpose(2, 0, 1),
    }[kind]
    path = tmp_path / f"{kind}.tif"
    if kind == "four":
        tifffile.imwrite(path, made, photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(path, made, photometric="rgb" if made.ndim == 3 else "minisblack")
    result = run(path, model, tmp_path / "o")
    assert result.class_pixels["nodata"] == 0
    assert labels(result).shape == (96, 130)


@pytest.mark.parametrize(
    ("contrast", "options", "words"),
    [
        ({"asked": "0,30000"}, {}, "--contrast 0,30000"),
        ({"asked": "0,30000"}, {"contrast": (0, 30000)}, None),
        ({"asked": "0,30000", "channels": [2, 1, 0]}, {"contrast": (0, 30000)}, "--contrast 0,30000 --channels 2,1,0"),
        ({"channels": [2, 1, 0]}, {"channels": (2, 1, 0)}, None),
        ({"channels": [7, 1, 0]}, {}, None),  # an image that has no such channel
        (None, {}, None),
    ],
)
def test_a_model_tuned_on_other_colours_says_so(
    contrast: dict[str, Any] | None, options: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    model = four_classes()
    assert model.header is not None
    model.header = replace(model.header, contrast=contrast)
    tifffile.imwrite(tmp_path / "deep.tif", picture((96, 96)).astype(np.uint16) * 100, photometric="rgb")
    warnings = run(tmp_path / "deep.tif", model, tmp_path / "o", **options).warnings
    assert len(warnings) == (words is not None)
    if words is not None:
        assert f"tuned on images shown with {words}, this one" in warnings[0]


def test_images_that_cannot_be_used_get_one_sentence(model: ISDNet, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "good.tif", picture((128, 128)), photometric="rgb")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:9000])
    (tmp_path / "empty.tif").write_bytes(b"")
    np.save(tmp_path / "nothing.npy", np.zeros((0, 5, 3), np.uint8))
    np.save(tmp_path / "tiny.npy", np.zeros((31, 500, 3), np.uint8))
    for name in ("cut.tif", "empty.tif", "nothing.npy", "tiny.npy", "missing.tif"):
        with pytest.raises(InputError) as caught:
            run(tmp_path / name, model, tmp_path / "o")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "o" / f"{name.split('.')[0]}.ome.zarr").exists()


@pytest.mark.parametrize("orientations", [1, pytest.param(2, marks=pytest.mark.long)])
def test_bad_tiles(model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientations: int) -> None:
    options: dict[str, Any] = {"skip_bad_tiles": True, "orientations": orientations}
    scene = picture((256, 256))
    source, hole = source_of(scene), Window(64, 128, 64, 64)
    read = type(source).read

    def failing(self: Any, window: Window, level: int = 0) -> np.ndarray:
        if level == 0 and not window.intersect(hole).empty:
            raise TileError(self.name, window, level, "damaged")
        return read(self, window, level)

    monkeypatch.setattr(type(source), "read", failing)
    with pytest.raises(InputError, match="--skip-bad-tiles"):
        run(source, model, tmp_path / "stop", orientations=orientations)
    advised = run(source, model, tmp_path / "stop", **options)  # the same job goes on as advised
    result = run(source, model, tmp_path / "skip", **options)
    out = labels(result)
    np.testing.assert_array_equal(labels(advised), out)
    expected = np.zeros(scene.shape[:2], bool)
    expected[hole.slices] = True
    np.testing.assert_array_equal(out == 255, expected)
    assert result.bad_windows == [(64, 128, 64, 64)]
    assert run(source, model, tmp_path / "skip", **options).bad_windows == result.bad_windows


@pytest.mark.parametrize(("format", "suffix", "of_maps"), [("geotiff", ".tif", ".tif"), ("png", ".png", ".ome.zarr")])
def test_maps_come_in_the_format_of_the_labels_where_it_can_hold_them(
    model: ISDNet, tmp_path: Path, format: str, suffix: str, of_maps: str
) -> None:
    result = run(
        source_of(picture((96, 128))), model, tmp_path, formats=(format,), probabilities=True, uncertainty=True
    )
    outputs = {kind: Path(result.outputs[kind]) for kind in ("labels", "probabilities", "uncertainty")}
    assert outputs["labels"].name.endswith(suffix)
    assert outputs["probabilities"].name.endswith(f"_probabilities{of_maps}")
    assert outputs["uncertainty"].name.endswith(f"_uncertainty{of_maps}")
    assert all(path.exists() for path in outputs.values())


@pytest.mark.long
def test_maps_change_no_label_and_cost_no_second_pass(
    model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Window] = []
    coarse = WholeImage.coarse_logits
    monkeypatch.setattr(WholeImage, "coarse_logits", lambda self, w: calls.append(w) or coarse(self, w))
    source = source_of(picture((300, 128)))
    plain = run(source, model, tmp_path / "plain")
    assert len(calls) == 1
    maps = run(source, model, tmp_path / "maps", probabilities=True, uncertainty=True)
    assert len(calls) == 2
    np.testing.assert_array_equal(labels(maps), labels(plain))
