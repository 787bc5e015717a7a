"""Pictures to start with: made or carried by what is installed, so that nothing is downloaded unless asked for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.paths import cache_folder
from napari_isdnet.progress import Clock, Progress

if TYPE_CHECKING:
    from napari_isdnet.io.source import ImageSource

GIGAPIXEL_SIDE = 32_768
_CHUNK = 1 << 18
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Sample:
    """A sample: what it is, for a menu, and how it is opened. ``has_truth``: the source has an attribute ``truth``."""

    name: str
    title: str
    open: Callable[[], ImageSource]
    has_truth: bool


def _aerial(name: str, side: int, seed: int) -> ImageSource:
    from napari_isdnet.io.world import ProceduralWorld

    world = ProceduralWorld((side, side), seed=seed)
    world.rename(name)
    world.truth.rename(f"{name}-truth")
    return world


def photograph_path() -> Path:
    """A cup of coffee on a table, 400 x 600 (Rachel Michetti, CC0), a file inside scikit-image's wheel."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / "coffee.png"
    if not path.exists():
        raise InputError(f"This scikit-image does not carry {path.name}; install scikit-image from a wheel.")
    return path


def _photograph() -> ImageSource:
    from napari_isdnet.io.open import open_source

    return open_source(photograph_path())


_SAMPLES = (
    Sample("aerial-4k", "Aerial world, 4096 x 4096, truth", partial(_aerial, "aerial-4k", 4096, 63), True),
    Sample("desert-4k", "Desert city, 4096 x 4096, truth", partial(_aerial, "desert-4k", 4096, 60), True),
    Sample("aerial-100k", "Aerial world, 100,000 x 100,000, truth", lambda: _aerial("aerial-100k", 100_000, 0), True),
    Sample("photograph", "Photograph to annotate (a cup of coffee)", _photograph, False),
)


def samples() -> tuple[Sample, ...]:
    """All samples that need no download."""
    return _SAMPLES


def sample_names() -> tuple[str, ...]:
    """Names for :func:`open_sample`."""
    return tuple(sample.name for sample in _SAMPLES)


def open_sample(name: str) -> ImageSource:
    """The sample ``name``; those with truth carry it as ``.truth``, a source of class indices.

    Raises :class:`InputError` for another name.
    """
    for sample in _SAMPLES:
        if sample.name == name:
            return sample.open()
    raise InputError(f"There is no sample '{name}'; choose one of {', '.join(sample_names())}.")


@dataclass(frozen=True)
class Download:
    """A file on the web. ``sha256`` (hex) and ``size`` (bytes) are checked where they are given."""

    url: str
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"A sample is downloaded from an http or https address, got '{self.url}'.")
        digest = self.sha256
        if digest is not None and (len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef")):
            raise InputError(f"A SHA-256 checksum is 64 hexadecimal digits, got '{digest}'.")

    @property
    def file_name(self) -> str:
        """Last part of the address, without anything that could leave the folder or that Windows takes in no name."""
        name = Path(unquote(urlsplit(self.url).path).replace("\\", "/")).name
        name = re.sub(r'[<>:"|?*\x00-\x1f]', "_", name)  # 'c:x' lies in the folder of another disk
        return name if name not in ("", ".", "..") else "download"

    def remote_size(self) -> int | None:
        """Bytes to come, asked of the server without fetching, so that the user can be asked first; None if unsaid."""
        with _open(Request(self.url, method="HEAD")) as response:
            text = response.headers.get("Content-Length")
        return int(text) if text and text.isdigit() else self.size


def _open(request: Request):  # type: ignore[no-untyped-def]  # urlopen's type depends on the scheme
    try:
        return urlopen(request, timeout=_TIMEOUT)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{request.full_url} cannot be reached ({reason}); check the address and the connection."
        ) from error


def download(item: Download, path: str | os.PathLike[str] | None = None, overwrite: bool = False) -> Iterator[Progress]:
    """Fetch ``item`` to ``path`` (default: the cache folder) and yield progress in bytes; close it to cancel.

    The file takes its name only after length and checksum were found right. Raises :class:`InputError` where the server
    cannot be reached, sends another length, or the checksum differs; nothing is left then.
    """
    target = Path(path) if path is not None else cache_folder() / item.file_name
    with replacing(target, overwrite) as temporary, _open(Request(item.url)) as response, temporary.open("wb") as file:
        text = response.headers.get("Content-Length")
        expected = item.size or (int(text) if text and text.isdigit() else None)
        clock, digest, received = Clock(float(expected or 0)), hashlib.sha256(), 0
        while chunk := _receive(response, item.url):
            received += len(chunk)
            if expected is not None and received > expected:
                raise InputError(f"{item.url} sends more than the {expected} bytes that it should have; not kept.")
            file.write(chunk)
            digest.update(chunk)
            yield clock.step(len(chunk), "downloading")
        if expected is not None and received != expected:
            raise InputError(f"{item.url} sent {received} bytes, {expected} were expected; try again.")
        if item.sha256 is not None and digest.hexdigest() != item.sha256.lower():
            raise InputError(f"{item.url} has SHA-256 {digest.hexdigest()}, {item.sha256} was expected; not kept.")


def _receive(response, url: str) -> bytes:  # type: ignore[no-untyped-def]
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, HTTPException) as error:
        raise InputError(f"{url}: the connection broke ({error}); try again.") from error
