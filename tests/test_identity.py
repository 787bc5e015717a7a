"""What tells an image from another, or from what it was: for resuming jobs, and for what is kept of it in the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_isdnet.annotation.project import Project
from napari_isdnet.exceptions import InputError
from napari_isdnet.io import zarr as module
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import build_overviews, with_overviews
from napari_isdnet.io.source import quick_identity


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_pixel_of_an_array_counts_whenever_it_is_changed(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_isdnet.io.array._HASHED_AT_ONCE", 1 << 16)  # several blocks
    image = np.array(noise(700, 900, 3), order=order)
    source = ArraySource([image, image[::2, ::2].copy()], "a")
    before, named = source.identity(), quick_identity(source)
    assert ArraySource([image.copy(), image[::2, ::2]], "a").identity() == before
    image[601, 333, 1] ^= 1
    assert source.identity() != before
    assert quick_identity(source) == named  # a project stays where it is
    image[601, 333, 1] ^= 1
    assert source.identity() == before


def test_a_closed_array_has_none() -> None:
    source = ArraySource([noise(8, 8)], "a")
    source.close()
    for ask in (source.identity, source.quick_identity):
        with pytest.raises(InputError, match="a was closed; open it again"):
            ask()


def test_an_array_on_disk_is_told_by_its_file_and_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArraySource, "_full_hash", None)
    np.save(tmp_path / "a.npy", noise(300, 400))
    os.utime(tmp_path / "a.npy", (1, 1))
    before = open_source(tmp_path / "a.npy").identity()
    view = np.asarray(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert open_source(view).identity() == before
    data = np.load(tmp_path / "a.npy")
    data[17, 33] ^= 1
    np.save(tmp_path / "a.npy", data)
    assert open_source(tmp_path / "a.npy").identity() != before


def test_a_lazy_array_is_looked_at_all_over() -> None:
    da = pytest.importorskip("dask.array")
    image = noise(700, 900, 3)
    before = open_source(da.from_array(image, chunks=(256, 256, 3))).identity()
    assert open_source(da.from_array(image.copy(), chunks=(256, 256, 3))).identity() == before
    image[100:200, 500:600] = 0
    assert open_source(da.from_array(image, chunks=(256, 256, 3))).identity() != before


def test_naming_a_project_does_not_wait_for_all_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_isdnet.annotation.project.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(ArraySource, "_full_hash", None)
    image = noise(300, 400, 3)
    with Project.open(ArraySource([image], "a"), classes=["one"]) as project:
        folder = project.folder
    with Project.open(ArraySource([image], "a")) as project:
        assert project.folder == folder
        assert project.other_image(ArraySource([image], "a")) == ""
        assert project.other_image(ArraySource([image[::-1]], "a")) != ""


def old(folder: Path) -> None:
    """As if all of it had been written long ago."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (10, 10))


@pytest.fixture(params=["plain", "group", "v2", "flat"])
def chunked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A Zarr image of 5 x 6 chunks, and its array to write to."""
    path = tmp_path / "a.zarr"
    options: dict[str, Any] = {"shape": (50, 60), "chunks": (10, 10), "dtype": "uint8"}
    if request.param == "group":
        group = zarr.create_group(store=path, zarr_format=3)
        array = group.create_array("0", **options)
        axes = [{"name": n, "type": "space"} for n in "yx"]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    elif request.param == "plain":
        array = zarr.create_array(store=path, zarr_format=3, **options)
    else:
        separator = {"name": "v2", "separator": "/" if request.param == "v2" else "."}
        array = zarr.create_array(store=path, zarr_format=2, chunk_key_encoding=separator, **options)
    array[...] = noise(50, 60) | 1
    old(path)
    return path, array


@pytest.mark.parametrize("stated", [1024, 12])
def test_a_chunk_that_is_replaced_makes_another_image(
    chunked: tuple[Path, Any], stated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, array = chunked
    monkeypatch.setattr(module, "_MOST_STATED", stated)  # 12: all folders, and few files
    before = open_source(path).identity()
    assert before["chunks"] >= 30
    assert open_source(path).identity() == before
    array[33, 44] = 0
    assert open_source(path).identity() != before


def test_a_chunk_that_is_written_in_place_or_removed_makes_another_image(chunked: tuple[Path, Any]) -> None:
    path, _ = chunked
    before = open_source(path).identity()
    last = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] in "0123456789")[-1]
    data, parent = last.read_bytes(), last.parent.stat()
    last.write_bytes(data)
    assert last.parent.stat().st_mtime_ns == parent.st_mtime_ns  # so that the file alone can tell
    changed = open_source(path).identity()
    assert changed != before
    last.unlink()
    old(path)
    assert open_source(path).identity()["chunks"] == before["chunks"] - 1


def test_few_files_are_asked_for_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        (tmp_path / str(number)).touch()
    asked: list[str] = []
    monkeypatch.setattr(module, "_MOST_STATED", 10)
    monkeypatch.setattr(module, "_changed", lambda path: asked.append(path) or 7)
    assert module._chunk_facts(tmp_path) == (300, 7)
    assert len(asked) <= 11


def test_a_project_of_an_earlier_version_is_of_the_same_image(chunked: tuple[Path, Any]) -> None:
    path, _ = chunked
    with Project.open(path, classes=["one"]) as project:
        del project._content["image"]["chunks"]  # which it did not record
        project._keep()
    with Project.open(path) as project:
        assert "chunks" not in project.image
        assert project.other_image(open_source(path)) == ""


def test_overviews_are_those_of_the_pixels_now(tmp_path: Path) -> None:
    image = noise(64, 4200, 3)
    source = ArraySource([image], "wide")
    for _ in build_overviews(source, tmp_path):
        pass
    assert with_overviews(source, tmp_path).built
    image[3, 7] ^= 1
    assert not with_overviews(source, tmp_path).built
