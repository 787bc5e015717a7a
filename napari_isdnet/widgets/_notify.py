"""Errors as napari notifications: what the user can mend in one sentence, a bug with its traceback."""

from __future__ import annotations

from napari_isdnet.exceptions import InputError


def notify_error(error: BaseException) -> None:
    """Show ``error``. Main thread only. An :class:`InputError` says in words what to do; all else is a bug."""
    from napari.utils.notifications import notification_manager, show_error

    if isinstance(error, InputError):
        show_error(str(error))
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)


def notify_info(message: str) -> None:
    """Tell something that needs no answer."""
    from napari.utils.notifications import show_info

    show_info(message)
