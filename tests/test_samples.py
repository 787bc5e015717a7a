from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.samples import (
    Download,
    download,
    open_sample,
    sample_names,
    samples,
)
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window
from tests.web_tools import serving

pytestmark = pytest.mark.usefixtures("own_cache")

BODY = bytes(range(256)) * 4000
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(BODY) as address:
        yield address


@pytest.mark.parametrize("sample", samples(), ids=lambda s: s.name)
def test_samples_open_and_read(sample) -> None:
    source = open_sample(sample.name)
    assert isinstance(source, ImageSource)
    assert source.channels == 3
    pixels = source.read(Window(source.shape[0] // 2, source.shape[1] // 2, 64, 64))
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 1
    assert hasattr(source, "truth") == sample.has_truth
    if sample.has_truth:
        assert source.truth.levels == source.levels
        assert source.truth.read(Window(0, 0, 8, 8)).max() <= 4
        assert source.truth.name != source.name


def test_sizes_are_those_of_the_names() -> None:
    assert open_sample("aerial-4k").shape == (4096, 4096)
    assert open_sample("aerial-100k").shape == (100_000, 100_000)


@pytest.mark.parametrize("name", ["aerial-4k", "desert-4k"])
def test_the_small_aerial_samples_show_every_class(name: str) -> None:
    truth = open_sample(name).truth
    pixels = truth.read(Window(0, 0, *truth.levels[4]), 4)
    shares = np.bincount(pixels.ravel(), minlength=5) / pixels.size
    assert shares.min() > 0.05, shares


def test_an_unknown_sample_is_refused_with_the_choice() -> None:
    with pytest.raises(InputError, match=sample_names()[0]):
        open_sample("moon")


@pytest.mark.parametrize("page", ["a.bin", "unsaid.bin"])
def test_download_checks_and_reports(server: str, page: str, tmp_path) -> None:
    item = Download(f"{server}/{page}?x=1", SHA.upper(), len(BODY))
    assert item.remote_size() == len(BODY)
    steps = list(download(item, tmp_path / "x.bin"))
    assert steps[-1].done == len(BODY)
    assert steps[-1].fraction == 1
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_download_goes_to_the_cache(server: str, tmp_path) -> None:
    list(download(Download(f"{server}/a.bin")))
    assert (tmp_path / "cache" / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "sha", "size", "words"),
    [
        ("a.bin", "0" * 64, None, "SHA-256"),
        ("a.bin", None, 1000, "more than"),
        ("a.bin", None, len(BODY) + 1, "were expected"),
        ("short.bin", None, None, "were expected|connection broke"),
        ("missing.bin", None, None, "cannot be reached"),
        ("torn.bin", None, None, "connection broke"),
        ("nonsense.bin", None, None, "cannot be reached"),
    ],
)
def test_a_bad_download_leaves_nothing(server: str, page: str, sha, size, words: str, tmp_path) -> None:
    with pytest.raises(InputError, match=words):
        list(download(Download(f"{server}/{page}", sha, size), tmp_path / "d" / "x.bin"))
    assert list((tmp_path / "d").iterdir()) == []


def test_a_cancelled_download_leaves_nothing(server: str, tmp_path) -> None:
    steps = download(Download(f"{server}/a.bin"), tmp_path / "d" / "x.bin")
    next(steps)
    steps.close()
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/hosts", "a.tif", "ftp://example.org/a.tif", "http:///a"])
def test_only_web_addresses(url: str) -> None:
    with pytest.raises(InputError, match="http or https"):
        Download(url)


def test_checksums_are_checksums() -> None:
    with pytest.raises(InputError, match="64 hexadecimal"):
        Download("http://example.org/a.tif", "xyz")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b.tif", "b.tif"),
        ("/", "download"),
        ("/a/..%2f..%5cevil.tif", "evil.tif"),
        ("/..", "download"),
        ("/c%3Aevil.tif", "c_evil.tif"),
    ],
)
def test_file_names_cannot_leave_the_folder(path: str, name: str) -> None:
    assert Download(f"http://example.org{path}").file_name == name
