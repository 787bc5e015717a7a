"""What the command line is made of: options that are parsed, facts that are printed, generators that are driven."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from typing import Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from napari_isdnet import cli, cli_options
from napari_isdnet.cli_output import drive, duration, print_facts
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window


@given(st.tuples(*[st.integers(0, 10**6)] * 2, *[st.integers(1, 10**6)] * 2))
def test_roi_round_trip(numbers: tuple[int, int, int, int]) -> None:
    assert cli_options.parse_roi(",".join(map(str, numbers))) == Window(*numbers)


@given(st.text(max_size=12))
@example("0\x1f")  # a separator to a pattern's \\s, none to int()
def test_parsers_read_or_refuse_any_text(text: str) -> None:
    for parse in (
        cli_options.parse_roi,
        cli_options.parse_channels,
        cli_options.parse_contrast,
        cli_options.parse_positive,
    ):
        with contextlib.suppress(typer.BadParameter):
            assert parse(text) is not None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_empty_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"a": 0, "b": "", "c": {}, "d": [], "e": None, "f": {"g": False, "h": ""}, "i": [1, 2]})
    assert capsys.readouterr().out == "a: 0\nf:\n  g: False\ni: 1, 2\n"


def test_drive_returns_what_the_generator_returns() -> None:
    def steps() -> Generator[Progress, None, str]:
        yield Progress(0, 1, "[half]")
        return "done"

    assert drive(steps(), "title", "never") == "done"


def test_no_help_speaks_of_an_option_that_the_command_has_not() -> None:
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        own = {text for p in command.params for text in (*p.opts, *p.secondary_opts)}
        said = {word for p in command.params for word in re.findall(r"--[a-z][a-z-]*", getattr(p, "help", None) or "")}
        assert said <= own, name
