"""What differs between operating systems for every layer: moving files that others read, words of the shell."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

Result = TypeVar("Result")

WINDOWS = sys.platform == "win32"
CASELESS = sys.platform in ("win32", "darwin")
"""Whether ``Scene.tif`` and ``scene.tif`` are one file, as on the disks of Windows and most Macs."""
PATIENCE_SECONDS = 3.0
"""So long a file may be open elsewhere: until a model is read, or a virus scanner has looked at it."""
_PLAIN = re.compile(r"[\w./\\:=+-]+")


def move(source: Path, target: Path) -> None:
    """``os.replace``, which waits on Windows for whoever has one of the two open: files are not moved there meanwhile.

    Raises what ``os.replace`` does, ``PermissionError`` after ``PATIENCE_SECONDS``.
    """
    _patiently(lambda: os.replace(source, target))


def unlink(path: Path) -> None:
    """Remove a file if it is there; waits on Windows for whoever has it open, as :func:`move` does."""
    _patiently(lambda: path.unlink(missing_ok=True))


def remove_folder(path: Path) -> None:
    """Remove a folder with all that can be removed of it; waits on Windows for whoever reads there, as :func:`move`."""
    with suppress(OSError):
        _patiently(lambda: shutil.rmtree(path))
    shutil.rmtree(path, ignore_errors=True)


def same_file(name: str) -> str:
    """``name`` so that names of one file are equal, where capitals make no difference."""
    return name.casefold() if CASELESS else name


def opened(path: Path) -> BinaryIO:
    """A file opened for reading; waits on Windows, where none is opened in the moment in which another replaces it."""
    return _patiently(lambda: path.open("rb"))


def _patiently(act: Callable[[], Result]) -> Result:
    last = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except PermissionError:
            if not WINDOWS or time.monotonic() > last:
                raise
        time.sleep(0.02)


def leave(code: int) -> NoReturn:
    """End the program with this exit code, without Python's last searches for garbage.

    They look at everything that torch and its like made, several times: 4 s of a slow core, to free what the system
    takes back anyway. What is registered to run at exit runs.
    """
    atexit.register(gc.freeze)  # not now: a test that calls a command goes on
    sys.exit(code)


def typed_words() -> list[str]:
    """The words of the command line, after the program's name; on Windows, whose shells leave that to programs, file
    patterns (``*.tif``) replaced by what they find, if anything.
    """
    words = sys.argv[1:]
    if not WINDOWS:
        return words
    return [name for word in words for name in (sorted(glob(word)) if {"*", "?"} & set(word) else ()) or (word,)]


def shell_line(words: Sequence[str]) -> str:
    """``words`` as one line to paste: for a POSIX shell; on Windows for cmd and PowerShell, which know double quotes.

    What those replace within them (``%NAME%``, ``$name``) they replace.
    """
    return " ".join(map(_quoted, words)) if WINDOWS else shlex.join(words)


def command_line(words: Sequence[str], options: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> str:
    """A command as :func:`shell_line`: ``words``, then the ``options``, but for those that are as ``usual``.

    None and False are no option, True is a flag, a tuple is one value with commas, a list the option once for each.
    """
    line, usual = list(words), usual or {}
    for name, value in options.items():
        if value is None or value is False or value == usual.get(name):
            continue
        for one in value if isinstance(value, list) else [value]:
            line += [f"--{name.replace('_', '-')}", *([] if one is True else [_as_typed(one)])]
    return shell_line(line)


def _as_typed(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)


def _quoted(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    # Programs take a backslash for itself unless a quote follows (Microsoft: "Parsing C command-line arguments").
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), word) + '"'
