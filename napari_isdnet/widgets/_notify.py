"""Errors as napari notifications: what the user can mend in one sentence, a bug with its traceback."""

from __future__ import annotations

import os
import re

from napari_isdnet.exceptions import InputError

#: What the command line tells to do, and what one does in a dock instead.
_IN_DOCK = (
    (r"use --overwrite or --no-resume to throw its work away and start again", "tick 'Replace' to start again"),
    (r"use --overwrite to (replace it|start again)", r"tick 'Replace' to \1"),
    (r"use --format (\S+) or (\S+), or a smaller --roi", r"choose \1 or \2 as the format, or a smaller region"),
    (r"; --scale (\S+) resamples it", r"; it does better resampled by \1, which the command line can (scale \1)"),
    (r", or use --skip-bad-tiles to get nodata there", ""),
    (r"use --context window", "choose 'Window by window' as the context"),
    (r"a larger --memory\b", "a larger memory budget in the preferences"),
    (r"where --memory leaves", "where the memory budget leaves"),
    (r"(?<!\S)--memory must", "The memory budget must"),
    (r"(?<!\S)--overwrite\b", "'Replace'"),
    (r"(?<!\S)--(?=[a-z])", ""),
)
_COMMAND = re.compile(r"('napari-isdnet [^']*')")


def in_dock(message: str) -> str:
    """A message of the engine without options of the command line; commands that it tells stay as they are."""
    # Of two windows of one program neither person nor message should care for its number, or end it.
    message = re.sub(
        rf"by process {os.getpid()} on \S+; wait for it, end it,", "in another window; wait for it,", message
    )
    parts = _COMMAND.split(message)
    for number in range(0, len(parts), 2):
        for option, words in _IN_DOCK:
            parts[number] = re.sub(option, words, parts[number])
    return "".join(parts)


def notify_error(error: BaseException) -> None:
    """Show ``error``. Main thread only. An :class:`InputError` says in words what to do; all else is a bug."""
    from napari.utils.notifications import notification_manager, show_error

    if isinstance(error, InputError):
        show_error(in_dock(str(error)))
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)


def notify_info(message: str) -> None:
    """Tell something that needs no answer."""
    from napari.utils.notifications import show_info

    show_info(message)
