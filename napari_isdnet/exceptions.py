"""The one kind of error that a user is meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was got, what is allowed, what to do. The command line prints it on
    stderr and exits 1 (2 for bad usage); a widget shows it as a napari notification. Anything that is *not* an
    ``InputError`` is a bug in this package.
    """


class AlreadyThere(InputError):
    """A result would replace a file that exists."""

    @classmethod
    def at(cls, path: object) -> AlreadyThere:
        """Of a result at ``path``."""
        return cls(f"{path} exists; use --overwrite to replace it, or choose another --output folder.")


class NothingToLearn(InputError):
    """What is annotated teaches nothing: all of it judges, or there is none."""


class MissingExtra(InputError):
    """A file format or feature needs an optional library that is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f'{what} needs {library}, which is not installed: pip install "napari-isdnet[{extra}]".')
        self.extra = extra
