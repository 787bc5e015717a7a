"""Tiny fakes of every data layout: patches of classes with noise, to try a recipe before the real data is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.layouts import cityscapes, deepglobe, inria

from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.exceptions import InputError

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
Maker = Callable[[Path, "Painter"], None]

OWN_CLASSES = classes_from(["field", "house"])
LAND_COVER = classes_from(["building", "land", "road", "vegetation", "water"])
MIN_SIDE = 64


class Painter:
    """Draws one image and mask after the other; the same seed draws the same."""

    def __init__(self, side: int, seed: int) -> None:
        self.side, self._rng = side, np.random.default_rng(seed)

    def paint(self, classes: tuple[ClassInfo, ...], shape: tuple[int, int] | None = None) -> tuple[Image, Mask]:
        """An image ``(H, W, 3)`` and its class indices ``(H, W)``: patches around random points, every class once."""
        height, width = shape or (self.side, self.side)
        points = self._rng.choice(height * width, 2 * len(classes), replace=False)
        rows, columns = np.divmod(np.arange(height * width), width)
        nearest = np.argmin([(rows - p // width) ** 2 + (columns - p % width) ** 2 for p in points], axis=0)
        mask = (nearest % len(classes)).astype(np.uint8).reshape(height, width)
        colors = np.array([c.color for c in classes], np.float32) * 0.6 + 50
        noise = self._rng.normal(0, 12, (height, width, 3))
        return np.clip(colors[mask] + noise, 0, 255).astype(np.uint8), mask


def make_fake(layout: str, folder: Path, side: int = 128, seed: int = 0) -> None:
    """Write a tiny data set of ``layout`` into ``folder``, which must be new or empty.

    Names are those of the published splits, so that each has a sample. ``side`` is the height of an image in pixels.
    """
    if layout not in MAKERS:
        raise InputError(f"There is no layout '{layout}' to fake; allowed are {', '.join(MAKERS)}.")
    if side < MIN_SIDE:
        raise InputError(f"The side of a fake must be at least {MIN_SIDE} pixels, got {side}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty; give a new folder for the fake.")
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[layout](folder, Painter(side, seed))


def _folder(root: Path, painter: Painter) -> None:
    """Own images of three kinds: OME-Zarr, pyramidal TIFF and PNG; masks are PNG."""
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for name, write in (("a", _write_zarr), ("b", _write_tiff), ("c", _write_picture)):
        image, mask = painter.paint(OWN_CLASSES)
        write(root / "images" / name, image)
        _save(root / "masks" / f"{name}.png", mask)


def _scenes(root: Path, painter: Painter) -> None:
    """The seven scenes and five classes that the recipes of land cover name."""
    for number in range(1, 8):
        image, mask = painter.paint(LAND_COVER)
        _write_tiff(root / f"scene{number}", image)
        _save(root / f"scene{number}_classes.png", mask)


def _deepglobe(root: Path, painter: Painter) -> None:
    """Three images to train, one to validate, one to test; as in the data set, colours of a mask are not all pure."""
    (root / "land-train").mkdir()
    for number in ("119", "2334", "3484", "455374", "10452"):
        image, mask = painter.paint(deepglobe.CLASSES)
        colors = np.array([c.color for c in deepglobe.CLASSES], np.uint8)[mask]
        colors[0] = np.where(colors[0] > 0, 251, 6)
        _save(root / "land-train" / f"{number}_sat.jpg", image)
        _save(root / "land-train" / f"{number}_mask.png", colors)


def _inria(root: Path, painter: Painter) -> None:
    """Four images to train, one to validate, one to test by the paper's split; both splits have some of each."""
    import tifffile

    for part in ("train/images", "train/gt", "test/images"):
        (root / part).mkdir(parents=True)
    for name in ("austin6", "chicago7", "kitsap1", "vienna2", "austin8", "austin1"):
        image, mask = painter.paint(inria.CLASSES)
        tifffile.imwrite(root / "train" / "images" / f"{name}.tif", image, photometric="rgb")
        tifffile.imwrite(root / "train" / "gt" / f"{name}.tif", mask * np.uint8(255))
    tifffile.imwrite(root / "test" / "images" / "bellingham1.tif", painter.paint(inria.CLASSES)[0], photometric="rgb")


def _cityscapes(root: Path, painter: Painter) -> None:
    """Two images to train, one to validate; masks hold the ids of the download, with some that no class has."""
    ids = np.array([number for number, _, _ in cityscapes.TABLE], np.uint8)
    for split, city, number in (("train", "aachen", 0), ("train", "ulm", 3), ("val", "munster", 1)):
        image, mask = painter.paint(cityscapes.CLASSES, (painter.side, 2 * painter.side))
        drawn = ids[mask]
        drawn[-4:] = 1  # the own car
        name = f"{city}_{number:06}_000019"
        for kind, ending, pixels in (
            ("leftImg8bit", cityscapes.IMAGE_ENDING, image),
            ("gtFine", cityscapes.LABEL_IDS, drawn),
        ):
            (root / kind / split / city).mkdir(parents=True)
            _save(root / kind / split / city / f"{name}{ending}.png", pixels)


def _save(path: Path, pixels: Image) -> None:
    from PIL import Image as Picture

    Picture.fromarray(pixels).save(path, quality=92)


def _write_picture(path: Path, image: Image) -> None:
    _save(path.with_name(f"{path.name}.png"), image)


def _write_tiff(path: Path, image: Image) -> None:
    """Tiles of 64 and one coarser level as a sub-IFD."""
    import tifffile

    tiles: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path.with_name(f"{path.name}.tif")) as writer:
        writer.write(image, subifds=1, **tiles)
        writer.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **tiles)


def _write_zarr(path: Path, image: Image) -> None:
    """OME-Zarr 0.5 with chunks of 64 and two levels."""
    import zarr

    group = zarr.open_group(str(path.with_name(f"{path.name}.ome.zarr")), mode="w", zarr_format=3)
    planes = np.moveaxis(image, 2, 0)
    datasets = []
    for level in range(2):
        group.create_array(
            str(level), data=np.ascontiguousarray(planes[:, :: 2**level, :: 2**level]), chunks=(3, 64, 64)
        )
        scale = {"type": "scale", "scale": [1.0, 2.0**level, 2.0**level]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    image_of: dict[str, Any] = {"name": path.name, "axes": axes, "datasets": datasets}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image_of]}


MAKERS: dict[str, Maker] = {
    "folder": _folder,
    "scenes": _scenes,
    "deepglobe": _deepglobe,
    "inria": _inria,
    "cityscapes": _cityscapes,
}
