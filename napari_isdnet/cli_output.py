"""What the command line shows: progress on stderr, results on stdout, errors as one sentence."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress, result_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Result = TypeVar("Result")

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Interrupted(Exception):
    """Ctrl-C; the message says how to go on."""


def drive(steps: Generator[Progress, None, Result], title: str, after_interrupt: str) -> Result:
    """Run a generator to its end, showing its progress on stderr, and return what it returns.

    Raises :class:`Interrupted` with the sentence ``after_interrupt`` on Ctrl-C, after the generator has cleaned up.
    """
    from rich.console import Console

    console = Console(stderr=True)
    show = _bar(console) if console.is_terminal else _Lines
    try:
        with show(title) as update:
            return result_of(steps, update)
    except KeyboardInterrupt:
        raise Interrupted(after_interrupt) from None


class _Lines:
    """For logs: one line at every new stage and every tenth of the work."""

    def __init__(self, title: str) -> None:
        self.title, self.last = title, ("", -1)

    def __enter__(self) -> Callable[[Progress], None]:
        return self.update

    def __exit__(self, *details: object) -> None:
        return None

    def update(self, progress: Progress) -> None:
        """Print where this step is worth a line."""
        state = (progress.stage, int(progress.fraction * 10))
        if state != self.last:
            self.last = state
            left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
            text = f"{self.title}: {progress.stage} {progress.fraction:.0%}{_figures(progress)}{left}"
            print(text, file=sys.stderr, flush=True)


def _figures(progress: Progress) -> str:
    """``, loss 0.42`` or ``, mIoU 0.61`` of a training step that has them."""
    found = progress.figures
    return "".join(f", {name} {found[key]:.3g}" for key, name in (("loss", "loss"), ("miou", "mIoU")) if key in found)


def _bar(console: Any) -> Callable[[str], Any]:
    """For terminals: a bar that is updated in place."""
    from contextlib import contextmanager

    from rich import progress as bars

    @contextmanager
    def show(title: str) -> Generator[Callable[[Progress], None], None, None]:
        columns = ("{task.description}", bars.BarColumn(), "{task.percentage:>3.0f} %", "{task.fields[left]}")
        with bars.Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(title, total=1.0, left="")

            def update(progress: Progress) -> None:
                left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
                text = f"{title}: {progress.stage}{_figures(progress)}".replace("[", r"\[")
                shown.update(task, completed=progress.fraction, description=text, left=left)

            yield update

    return show


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; paths become text, NaN is refused."""
    print(json.dumps(data, default=str, allow_nan=False), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are numbers or notes."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print_wide(table)


def print_wide(table: Table, lines: Sequence[str] = (), console: Console | None = None) -> None:
    """A table and the lines below it on stdout, or on ``console``; a pipe has no width, so nothing is folded there."""
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal and console.file is sys.stdout:
        console = Console(width=max(80, console.measure(table, options=console.options.update(width=400)).maximum))
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    """``key: value`` lines on stdout, nested mappings indented; what is empty has no line.

    Keys of nested mappings (classes, say) are names of the user's and stay as they are.
    """
    for key, value in facts.items():
        if value is None or value in ("", (), [], {}):
            continue
        words = str(key) if indent else str(key).replace("_", " ")
        if isinstance(value, Mapping):
            print(f"{indent}{words}:")
            print_facts(value, indent + "  ")
        elif isinstance(value, list | tuple) and not isinstance(value[0], int | float):
            print(f"{indent}{words}:")
            for item in value:
                print(f"{indent}  {item}")
        else:
            text = ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
            print(f"{indent}{words}: {text}")


def print_result(facts: Mapping[str, Any], as_json: bool) -> None:
    """What a command has to say on stdout: as lines, or as one JSON object."""
    (print_json if as_json else print_facts)(facts)


def print_error(message: str) -> None:
    """One line on stderr."""
    print(f"Error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def report(error: BaseException, debug: bool, json: bool = False) -> int:
    """Say what went wrong in one line (the whole traceback with ``debug``) and return the exit code.

    ``json``: say it on stdout too, as an object with ``error`` and ``exit_code``.
    """
    if debug:
        traceback.print_exception(error)
    message, code = _explained(error, debug)
    if message:  # empty where the help was printed instead
        with suppress(OSError):  # a full disk behind stdout takes no sentence about it either
            print_error(message)
            if json:
                print_json({"error": " ".join(message.split()), "exit_code": code})
    return code


def _explained(error: BaseException, debug: bool) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    if isinstance(error, Interrupted):
        return str(error), INTERRUPTED
    # Bad usage, as the command-line library raises it (its own package or a vendored one).
    code = getattr(error, "exit_code", None)
    if isinstance(code, int) and hasattr(error, "format_message"):
        return str(error.format_message()), code
    if isinstance(error, InputError):
        return str(error), FAILED
    if isinstance(error, OSError):
        place = error.filename or "no file named"
        return f"{error.strerror or error} ({place}); check the path, rights and space.", FAILED
    hint = " report it" if debug else " run it again with --debug to see where, and report it"
    return f"{type(error).__name__}: {error}; this is a bug in napari-isdnet:{hint}.", FAILED
