"""A project: everything that belongs to one image, in ``<image>.isdnet`` beside it.

``project.json`` holds the image's identity and the history of models; ``models/`` the model files; the rest
is the annotation (see :mod:`~napari_isdnet.annotation.layout`).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.layout import JOURNAL, store_folder
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import remove, scratch, try_writing, write_atomic
from napari_isdnet.io.source import ImageSource, quick_identity
from napari_isdnet.paths import cache_folder
from napari_isdnet.system import move, same_file

ENDING = ".isdnet"
FILE = "project.json"
MODELS = "models"
_TELLING = {"size", "bytes", "chunks", "shape", "dtype", "sample", "world", "version", "seed", "scale"}
"""What of an image's identity another image may have differently."""
_BLOCKS, _BLOCK = 17, 4096


@dataclass(frozen=True)
class ModelEntry:
    """One model of a project. ``position`` is the journal entry up to which annotations were used."""

    id: str
    name: str
    file: str
    parent: str | None
    position: int
    annotation: str
    time: float
    figures: Mapping[str, Any] = field(default_factory=dict)


class Project:
    """The annotation (``store``) and model history of one image. Use it as a context, or close it."""

    def __init__(self, folder: Path, store: AnnotationStore, content: dict[str, Any]) -> None:
        self.folder = folder
        self.store = store
        self._content = content
        self._lock = threading.Lock()  # a model is taken in beside the window, which may choose another meanwhile

    @classmethod
    def open(
        cls,
        source: Any,
        classes: Sequence[Any] = (),
        folder: str | Path | None = None,
        read_only: bool = False,
        rebuild: bool = False,
    ) -> Project:
        """The project of an image, made if there is none yet.

        ``source`` is an image file, an open source, or the folder of a project; ``classes`` start a new project.
        Raises :class:`InputError` when it belongs to an image of another size, or another process has it open.
        """
        if isinstance(source, str | os.PathLike):
            path = store_folder(Path(source))
            if (path / JOURNAL).is_file():
                return cls._existing(path, None, read_only, rebuild)
            if path.suffix == ENDING:
                raise InputError(f"{path} holds no project; give the image, or an existing .isdnet folder.")
            from napari_isdnet.io.open import open_source

            opened = open_source(path)
            try:
                return cls._of_source(opened, path, classes, folder, read_only, rebuild)
            finally:
                opened.close()
        if not isinstance(source, ImageSource):
            raise InputError(f"A project belongs to an image file or source, got {type(source).__name__}.")
        file = quick_identity(source).get("path")
        return cls._of_source(source, Path(file) if file else None, classes, folder, read_only, rebuild)

    @classmethod
    def _of_source(
        cls,
        source: ImageSource,
        path: Path | None,
        classes: Sequence[Any],
        folder: str | Path | None,
        read_only: bool,
        rebuild: bool,
    ) -> Project:
        where = Path(folder) if folder is not None else project_folder(path, quick_identity(source))
        if (where / JOURNAL).is_file():
            return cls._existing(where, source, read_only, rebuild)
        if read_only:
            raise InputError(
                f"Nothing is annotated yet (there is no {where}): paint in napari, or import a file with"
                " 'napari-isdnet annotation import'."
            )
        store = AnnotationStore.create(where, source.shape, classes)
        project = cls(where, store, _new_content(source))
        project._keep()
        return project

    @classmethod
    def _existing(cls, folder: Path, source: ImageSource | None, read_only: bool, rebuild: bool) -> Project:
        store = AnnotationStore.open(folder, read_only=read_only, rebuild=rebuild)
        try:
            if source is not None and source.shape != store.shape:
                raise InputError(
                    f"{folder} belongs to an image of {store.shape[0]} x {store.shape[1]} pixels, {source.name} has"
                    f" {source.shape[0]} x {source.shape[1]}; move the folder away to start anew."
                )
            content = _read(folder / FILE)
            if source is not None:
                content["image"] = content["image"] or image_facts(source)
            return cls(folder, store, content)
        except BaseException:
            store.close()
            raise

    # -- the image ----------------------------------------------------------------------------------------------------

    @property
    def image(self) -> Mapping[str, Any]:
        """Identity of the image when the project was made."""
        return dict(self._content["image"] or {})

    def other_image(self, source: ImageSource) -> str:
        """A sentence where ``source`` is not the image that the annotation was begun on, else ''."""
        if not _differ(self.image, image_facts(source)):
            return ""
        return (
            f"'{source.name}' is not the image that this annotation was begun on, or was changed since: check that what"
            " is painted still fits it."
        )

    # -- models -------------------------------------------------------------------------------------------------------

    def add_model(
        self,
        model: str | os.PathLike[str] | Callable[[Path], object],
        *,
        name: str = "",
        parent: str | None = None,
        root: bool = False,
        figures: Mapping[str, Any] | None = None,
        position: int | None = None,
        make_current: bool = True,
    ) -> ModelEntry:
        """Take a model into the history; returns its entry.

        ``model`` is a file (copied) or a function that writes one to the path it is given. ``parent`` is the id it was
        trained from (default: the current one; with ``root`` none of this history), ``position`` the journal position
        it was trained on (default: now).
        """
        if parent is not None:
            self.model(parent)
        self._writable()
        at = self.store.position if position is None else position
        folder, suffix = self.folder / MODELS, ".safetensors" if callable(model) else Path(model).suffix
        try:
            with scratch(folder) as prefix:
                temporary = folder / f"{prefix}model{suffix}"
                try:
                    if callable(model):
                        model(temporary)
                    else:
                        shutil.copyfile(model, temporary)
                    with self._lock:
                        identifier = self._next_id()
                        move(temporary, folder / f"{identifier}{suffix}")
                        entry = ModelEntry(
                            id=identifier,
                            name=name or identifier,
                            file=f"{MODELS}/{identifier}{suffix}",
                            parent=None if root else parent if parent is not None else self.current,
                            position=at,
                            annotation=str(self.store.journal.entry(at)["id"]),
                            time=round(time.time(), 3),
                            figures=dict(figures or {}),
                        )
                        current = identifier if make_current else self.current
                        self._keep(models=[*self._content["models"], asdict(entry)], current=current)
                finally:
                    remove(temporary)
        except OSError as error:
            raise InputError(f"The model cannot be kept in {folder} ({error}); nothing was added.") from None
        return entry

    def _next_id(self) -> str:
        ids = [int(entry["id"][1:]) for entry in self._content["models"]]
        return f"m{max(ids, default=0) + 1:03d}"

    def history(self) -> list[ModelEntry]:
        """All models, oldest first."""
        return [ModelEntry(**entry) for entry in self._content["models"]]

    def model(self, identifier: str) -> ModelEntry:
        """One entry of the history; raises :class:`InputError` for an id that it lacks."""
        for entry in self.history():
            if entry.id == identifier:
                return entry
        known = ", ".join(entry.id for entry in self.history()) or "none"
        raise InputError(f"{self.folder} has no model '{identifier}'; it has {known}.")

    def model_path(self, identifier: str) -> Path:
        """The file of a model."""
        return self.folder / self.model(identifier).file

    @property
    def current(self) -> str | None:
        """Id of the model in use; ``None`` before the first."""
        value: str | None = self._content["current"]
        return value

    def set_current(self, identifier: str | None) -> None:
        """Go (back) to a model of the history, or to none."""
        if identifier is not None:
            self.model(identifier)
        with self._lock:
            self._keep(current=identifier)

    # -- saving -------------------------------------------------------------------------------------------------------

    def _writable(self) -> None:
        if self.store.read_only:
            raise InputError(f"{self.folder} was opened read-only (or closed); open it for writing.")

    def _keep(self, **changes: Any) -> None:
        """Content with ``changes``, once it is on the disk."""
        self._writable()
        content = {**self._content, **changes}
        write_atomic(self.folder / FILE, json.dumps(content, indent=1).encode())
        self._content = content

    def close(self) -> None:
        """Write everything and let others open the project."""
        self.store.close()

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def models_in(folder: Path) -> tuple[str | None, list[ModelEntry]]:
    """The current model's id and the models of a project whose files are there: the current one, then newest first.

    Neither opens nor locks the project; nothing is found where there is none, or none that can be read.
    """
    try:
        content = _read(folder / FILE)
        entries = [ModelEntry(**entry) for entry in content["models"]][::-1]
    except (InputError, TypeError, AttributeError):  # no JSON, or not of ours
        return None, []
    current: str | None = content["current"]
    there = [entry for entry in entries if (folder / entry.file).is_file()]
    return current, sorted(there, key=lambda entry: entry.id != current)


def project_folder(path: Path | None, identity: Mapping[str, Any]) -> Path:
    """``<image>.isdnet`` beside the image; in the cache folder when that is read-only or there is no file.

    A project that is there goes before a place for a new one: a folder may be writable today that was not yesterday.
    """
    *beside, cached = _places(path, identity)
    return existing_folder(path, identity) or (beside[0] if beside and _can_write(beside[0].parent) else cached)


def existing_folder(path: Path | None, identity: Mapping[str, Any]) -> Path | None:
    """Where the project of an image lies, None where it has none; ``identity`` tells those without a file apart."""
    return next((folder for folder in _places(path, identity) if (folder / JOURNAL).is_file()), None)


def _places(path: Path | None, identity: Mapping[str, Any]) -> list[Path]:
    """Where a project may lie, the better place first."""
    beside = [] if path is None else [Path(os.path.abspath(path))]
    return [*(file.with_name(file.name + ENDING) for file in beside), _cached_folder(path, identity)]


def _cached_folder(path: Path | None, identity: Mapping[str, Any]) -> Path:
    path = None if path is None else Path(os.path.abspath(path))
    key = same_file(str(path)) if path is not None else json.dumps(_facts(identity), sort_keys=True)
    stem = path.name if path is not None else str(identity.get("name", "array"))
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:80]
    return cache_folder() / "projects" / f"{safe}-{blake2b(os.fsencode(key), digest_size=6).hexdigest()}{ENDING}"


def _can_write(folder: Path) -> bool:
    try:
        try_writing(folder)
    except OSError:
        return False
    return True


def _facts(identity: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(dict(identity), default=str))
    return facts


def image_facts(source: ImageSource) -> dict[str, Any]:
    """Identity of an image, with a sample of its file: other pixels in a plain TIFF do not change its size."""
    facts = _facts(quick_identity(source))
    path = Path(facts.get("path") or "")
    return facts | {"bytes": _sample(path)} if path.is_file() else facts


def _sample(path: Path) -> str:
    """Hash of blocks all over a file."""
    digest = blake2b(digest_size=8)
    with open(path, "rb") as file:
        last = max(0, file.seek(0, os.SEEK_END) - _BLOCK)
        for number in range(_BLOCKS):
            file.seek(last * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two identities contradict each other.

    Moving or copying an image together with its project changes nothing of what is compared, nor does another reader
    of its format; what only one of them states, because another version of this package wrote it, tells nothing. The
    size of a Zarr image is that of its metadata, which grows with labels that are added.
    """
    known = _TELLING & before.keys() & now.keys()
    return any(before[key] != now[key] for key in known - ({"size"} if "chunks" in known else set()))


def _new_content(source: ImageSource) -> dict[str, Any]:
    return _empty() | {"image": image_facts(source), "shape": list(source.shape)}


def _empty() -> dict[str, Any]:
    return {"format": 1, "image": None, "models": [], "current": None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return _empty()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it, or move it away (annotations stay).") from None
    if content.get("format") != 1:
        raise InputError(f"{path} has format {content.get('format')}, this version reads 1; update napari-isdnet.")
    return {**_empty(), **content}
