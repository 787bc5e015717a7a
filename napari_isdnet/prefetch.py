"""Working ahead: while one window is computed, threads read, write or build others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def ahead(keys: Iterable[Key], load: Callable[[Key], Value], count: int) -> Iterator[tuple[Key, Value]]:
    """(key, load(key)) in order, with up to ``count`` loads running ahead; ``count`` 0 loads when asked.

    An error of ``load`` is raised at its key. Closing the iterator waits for the loads that run.
    """
    if count < 1:
        for key in keys:
            yield key, load(key)
        return
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="isdnet-ahead") as pool:
        iterator = iter(keys)
        try:
            for key in iterator:
                waiting.append((key, pool.submit(load, key)))
                if len(waiting) > count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
