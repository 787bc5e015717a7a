"""What the classes of an annotation were called, and what each of them is called now.

A model and a map hold the names that classes had when they were made. Which classes these are is known by the journal:
it keeps every edit of the class list, also those that were taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from napari_isdnet.annotation.classlist import class_list
from napari_isdnet.annotation.journal import ID_CHARS, Entry, Journal
from napari_isdnet.classes import ClassInfo, folded, index_of


@dataclass(frozen=True)
class Moment:
    """The class list from journal entry ``position`` on: its ``names``, and what each is called ``now``.

    A class that was merged is called as the one that took it in; one that was removed is None.
    """

    position: int
    names: tuple[str, ...]
    now: tuple[str | None, ...]


@dataclass(frozen=True)
class Naming:
    """All class lists of an annotation, oldest first; the last one holds the names of now.

    ``ids``: how the identifiers of the entries up to that list begin, by which a model shows that it was trained here.
    """

    moments: tuple[Moment, ...] = ()
    ids: str = ""

    @property
    def present(self) -> tuple[str, ...]:
        """What the classes are called now."""
        return self.moments[-1].names if self.moments else ()

    def at(self, position: int) -> dict[str, str | None]:
        """What each class of the list that stood after entry ``position`` is called now."""
        moment = next((m for m in reversed(self.moments) if m.position <= position), None)
        return {} if moment is None else dict(zip(moment.names, moment.now, strict=True))

    def followed(self, names: Sequence[str], position: int | None = None, merged: bool = False) -> dict[str, str]:
        """Which of ``names`` no class has now, and what the class that had it is called now.

        They are names of journal entry ``position``, or of any time: then the last class of that name counts. A name
        that is in use again is that class's, and one that ``names`` hold already is not given a second time; except,
        with ``merged``, to a class that stood beside another and is one with it now.
        """
        moments = [m for m in self.moments if position is None or m.position <= position]
        moments = moments[::-1] if position is None else moments[-1:]
        taken, found = {folded(name) for name in names}, dict[str, str]()
        for name in names:
            if not name or index_of(name, self.present) is not None:
                continue
            places = ((m, index_of(name, m.names)) for m in moments)
            then, index = next(((m, index) for m, index in places if index is not None), (None, 0))
            now = None if then is None else then.now[index]
            if then is None or now is None:
                continue
            if folded(now) not in taken or (merged and then.now.count(now) > 1):
                found[name] = now
                taken.add(folded(now))
        return found

    def imported(self, names: Iterable[str], note: Callable[[str], None] | None) -> dict[str, str]:
        """:meth:`followed`, also of merged classes, for what comes in from a file; ``note`` is told each."""
        called = self.followed(list(dict.fromkeys(names)), merged=True)
        if note is not None:
            for text in in_words(called):
                note(f"{text}.")
        return called

    def of_model(self, names: Sequence[str], lineage: Mapping[str, Any]) -> dict[str, str]:
        """:meth:`followed` for the classes of a model that was trained on this annotation; {} for any other model."""
        made = lineage.get("annotations")
        position, identifier = (made.get("position"), made.get("id")) if isinstance(made, Mapping) else (None, None)
        if not isinstance(position, int) or not 0 <= position < len(self.ids) // ID_CHARS:
            return {}  # later than the last edit, too: there is nothing to follow
        own = self.ids[position * ID_CHARS : (position + 1) * ID_CHARS]
        return self.followed(names, position) if str(identifier)[:ID_CHARS] == own else {}

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"moments": [[m.position, m.names, m.now] for m in self.moments], "ids": self.ids}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Naming:
        """Inverse of :meth:`to_json`."""
        moments = (Moment(int(at), tuple(names), tuple(now)) for at, names, now in facts["moments"])
        return cls(tuple(moments), str(facts["ids"]))


def renamed(classes: Sequence[ClassInfo], called: Mapping[str, str]) -> list[ClassInfo]:
    """The classes under the names that they have now, where ``called`` gives one."""
    return [replace(info, name=called.get(info.name, info.name)) for info in classes]


def in_words(called: Mapping[str, str]) -> list[str]:
    """What each class is called now, a sentence without its full stop for each."""
    return [f"'{name}' is called '{now}' now" for name, now in called.items()]


@dataclass(frozen=True)
class _List:
    """Classes in their order, each by a number of its own for good; ``merged``: which one took another in."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    merged: Mapping[int, int]


def naming_of(journal: Journal, position: int | None = None) -> Naming:
    """The names of an annotation as of journal entry ``position`` (default: now); reads the edits of the list only."""
    last = journal.position if position is None else position
    fresh, before, after = count(), dict[int, _List](), dict[int, _List]()
    names = _names(journal.header["classes"])
    state = _List(tuple(next(fresh) for _ in names), names, {})
    lists = [(0, state)]
    for n in [n for n in journal.edits if n <= last]:
        entry = journal.entry(n)
        if entry["kind"] == "undo":
            state = before[int(entry["target"])]
        elif entry["kind"] == "redo":
            state = after[int(entry["target"])]
        else:
            before[n], state = state, _edited(state, entry, fresh)
            after[n] = state
        lists.append((n, state))
    moments = tuple(Moment(n, then.names, tuple(_now(k, state) for k in then.numbers)) for n, then in lists)
    renamed = any(set(moment.names) - set(state.names) for moment in moments)
    return Naming(moments, journal.ids(lists[-1][0]) if renamed else "")


def _names(classes: Sequence[Any]) -> tuple[str, ...]:
    return tuple(item.info.name for item in class_list(classes))


def _edited(state: _List, entry: Entry, fresh: count[int]) -> _List:
    """The list after an edit: without a table of values every class keeps its place."""
    names, merged = _names(entry["classes"]), dict(state.merged)
    table = entry.get("table")
    homes: list[list[int]] = [[] for _ in names]
    for index in range(len(state.names)):
        value = index + 1 if table is None else int(table[index + 1])
        if 0 < value <= len(names):
            homes[value - 1].append(index)
    numbers = []
    for name, old in zip(names, homes, strict=True):
        stays = next((k for k in old if state.names[k] == name), old[0] if old else None)
        numbers.append(next(fresh) if stays is None else state.numbers[stays])
        merged |= {state.numbers[k]: numbers[-1] for k in old if k != stays}
    return _List(tuple(numbers), names, merged)


def _now(number: int, state: _List) -> str | None:
    while number not in state.numbers and number in state.merged:
        number = state.merged[number]
    return state.names[state.numbers.index(number)] if number in state.numbers else None
