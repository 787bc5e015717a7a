"""Calling the command line from a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from napari_isdnet import cli


@dataclass
class Ran:
    """What a command came to: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON object on the last line of stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


Runner = Callable[..., Ran]


def runner(capfd: pytest.CaptureFixture[str]) -> Runner:
    """Calls ``napari-isdnet`` in this process with the arguments given."""

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = cli.run(cli.app, [str(a) for a in arguments], "napari-isdnet")
        return Ran(code, *capfd.readouterr())

    return call
