"""Samples as files: written or fetched once, whole or not at all, and never a large one unasked."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io import sample_files as module
from napari_isdnet.io.open import open_source
from napari_isdnet.io.sample_files import SampleFile, find_sample_file, sample_files
from napari_isdnet.io.samples import Download, download
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.window import Window
from tests.cli_tools import Runner
from tests.web_tools import serving

pytestmark = pytest.mark.usefixtures("own_cache")

BODY = bytes(range(256)) * 100


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ProceduralWorld:
    """A world of 300 x 400 in place of the gigapixel one."""
    world = ProceduralWorld((300, 400))
    monkeypatch.setattr(module, "_gigapixel", lambda: world)
    return world


def test_two_processes_that_write_one_sample_get_it_both(small: ProceduralWorld) -> None:
    sample = find_sample_file("gigapixel")
    first = sample.obtain()
    next(first)
    list(sample.obtain())  # the other is done with both files before this one comes to the second
    list(first)
    assert sample.ready()


def online(address: str, page: str = "a.svs", size: int = len(BODY), body: bytes = BODY) -> SampleFile:
    item = Download(f"{address}/{page}", hashlib.sha256(body).hexdigest(), size)
    fetch = (lambda path, overwrite: download(item, path, overwrite),)
    return SampleFile("online", "A file", "whatever", ("a.svs",), size, fetch, item)


def test_a_generated_one_is_a_pyramid_with_its_truth_beside_it(small: ProceduralWorld) -> None:
    sample = find_sample_file("gigapixel")
    assert not sample.ready()
    assert sample.bytes_to_come() == sample.size
    steps = list(sample.obtain())
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert sample.ready()
    assert sample.bytes_to_come() == 0
    picture, truth = sample.paths()
    with closing(open_source(picture)) as source:
        assert source.shape == (300, 400)
        assert source.pixel_size is not None
        assert source.pixel_size.metres == pytest.approx(0.3, rel=1e-3)
        assert np.abs(source.read(Window(0, 0, 300, 400)).astype(int) - small.read(Window(0, 0, 300, 400))).mean() < 4
    with closing(open_source(truth)) as source:
        assert np.array_equal(source.read(Window(0, 0, 300, 400)), small.truth.read(Window(0, 0, 300, 400)))


def test_what_is_there_is_kept_and_only_the_rest_is_made(small: ProceduralWorld) -> None:
    sample = find_sample_file("gigapixel")
    list(sample.obtain())
    picture, truth = sample.paths()
    truth.unlink()
    before = picture.stat().st_mtime_ns
    list(sample.obtain())
    assert picture.stat().st_mtime_ns == before
    assert truth.exists()
    assert list(sample.obtain()) == []
    list(sample.obtain(overwrite=True))
    assert picture.stat().st_mtime_ns > before


def test_cancelled_leaves_nothing_half_written(small: ProceduralWorld, tmp_path: Path) -> None:
    steps = find_sample_file("gigapixel").obtain(tmp_path / "here")
    next(steps)
    steps.close()
    assert list((tmp_path / "here").iterdir()) == []


def test_the_photograph_is_copied(tmp_path: Path) -> None:
    sample = find_sample_file("photograph")
    list(sample.obtain(tmp_path))
    with closing(open_source(sample.paths(tmp_path)[0])) as source:
        assert source.shape == (400, 600)
    assert sample.paths(tmp_path)[0].stat().st_size == sample.size


def test_a_download_is_asked_for_first_and_checked_after(tmp_path: Path) -> None:
    with serving(BODY) as address:
        sample = online(address)
        assert sample.bytes_to_come(tmp_path) == len(BODY)
        assert sample.cost(len(BODY)) == "26 kB from 127.0.0.1"
        list(sample.obtain(tmp_path))
        assert (tmp_path / "a.svs").read_bytes() == BODY
        assert sample.bytes_to_come(tmp_path) == 0
        with pytest.raises(InputError, match=r"has 25,600 bytes now, 25,599 were expected"):
            online(address, size=len(BODY) - 1).bytes_to_come(tmp_path / "b")
        with pytest.raises(InputError, match="SHA-256"):
            list(online(address, body=b"other").obtain(tmp_path / "b"))
        assert list((tmp_path / "b").iterdir()) == []
        with pytest.raises(InputError, match="cannot be reached"):
            online(address, "missing").bytes_to_come(tmp_path / "b")


def test_every_sample_has_a_name_of_its_own_and_says_what_it_is() -> None:
    found = sample_files()
    assert len({s.name for s in found}) == len({s.title for s in found}) == len(found)
    assert len({name for s in found for name in s.files}) == sum(len(s.files) for s in found)
    for sample in found:
        assert len(sample.files) == len(sample.steps)
        assert sample.about
        if sample.item is not None:
            assert sample.item.url.startswith("https://")
            assert sample.item.sha256
            assert sample.item.size == sample.size
    with pytest.raises(InputError, match="no sample 'moon'; choose one of aerial-4k"):
        find_sample_file("moon")


def test_the_command_lists_gets_and_finds_again(cli: Runner, small: ProceduralWorld, tmp_path: Path) -> None:
    listed = cli("sample", "--json").json["samples"]
    assert [s["name"] for s in listed] == [s.name for s in sample_files()]
    table = cli("sample", "--output", str(tmp_path)).out
    assert "178 MB from openslide.cs.cmu.edu" in table
    first = cli("sample", "photograph", "--output", str(tmp_path), "--json")
    assert first.json["files"] == [str(tmp_path / "coffee.png")]
    assert "there already" in cli("sample", "--output", str(tmp_path)).out
    assert cli("sample", "photograph", "--output", str(tmp_path), "--json").json == first.json


def test_a_large_one_is_never_fetched_unasked(
    cli: Runner,
    small: ProceduralWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = ("--output", str(tmp_path / "new"))
    refused = cli("sample", "gigapixel", *folder)
    assert refused.code == 1
    assert "takes about 429 MB, written here; add --yes to get it." in refused.err
    assert not (tmp_path / "new").exists()
    answers: list[bool] = [False, True]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: answers.pop(0))
    assert "Nothing was fetched" in cli("sample", "gigapixel", *folder).err
    assert cli("sample", "gigapixel", *folder).code == 0
    assert len(list((tmp_path / "new").iterdir())) == 2
    assert cli("sample", "gigapixel", *folder, "--yes", "--overwrite").code == 0
