"""The job that lies in the folder already: whether it is the one that is asked for, and else what differs. No Qt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.engine.differences import job_differences
from napari_isdnet.engine.ledger import read_about, read_header
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import ImageSource
from napari_isdnet.widgets._notify import in_dock
from napari_isdnet.widgets._segment_controller import Settings
from napari_isdnet.window import Window


@dataclass(frozen=True)
class Earlier:
    """A job that is there; ``damaged`` says why it cannot be read."""

    folder: Path
    header: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    damaged: str = ""

    @classmethod
    def read(cls, output: Path, stem: str) -> Earlier | None:
        """The job of the image ``stem`` in the folder ``output``; None where there is none."""
        folder = output / f"{stem}.job"
        try:
            header = read_header(folder)
        except InputError as error:
            return cls(folder, damaged=in_dock(str(error)))
        return None if header is None else cls(folder, header, read_about(folder))

    def differences(
        self, settings: Settings, roi: Window | None, model_name: str, identity: Mapping[str, Any] | None
    ) -> list[str]:
        """In words, what was chosen otherwise; empty where all that a person chooses is the same.

        ``identity`` is that of the image, where it is known without reading pixels. What only the engine knows (the
        weights behind a name, the contrast it finds) is compared by the engine when the job is begun.
        """
        wanted: dict[str, Any] = {
            "model_name": model_name,
            "context": settings.context,
            "roi": None if roi is None else list(astuple(roi)),
            "probabilities": settings.probabilities,
            "uncertainty": settings.uncertainty,
            "scale": 1.0,
            "orientations": settings.orientations,
            "skip_bad_tiles": False,
        }
        if settings.device != "auto":
            wanted["device"] = settings.device.partition(":")[0]
        if identity is not None:
            wanted["image"] = json.loads(json.dumps(dict(identity)))  # as it comes back from a file
        return job_differences(self.header, wanted, self.about)

    def hint(self, differences: list[str], replace: bool, known: bool = True) -> str:
        """One sentence below the button; ``known``: the image was compared with the job's."""
        if self.damaged:
            return self.damaged
        if not differences:
            whose = "this image" if known else "an image of this name"
            return f"An earlier job of {whose} lies in the folder: what is done is not computed again."
        return self.refusal(differences, replace)

    def refusal(self, differences: list[str], replace: bool = False) -> str:
        """What another job lies there, and what becomes of it."""
        begun = f"The job in the folder was begun with {'; '.join(differences)}:"
        if replace:
            return f"{begun} it is replaced, with its result ({self.folder.name})."
        return f"{begun} {self._way_out()}"

    def _way_out(self) -> str:
        return (
            f"tick 'Replace' to throw it and its result away ({self.folder.name}) and start again, or choose another"
            " folder."
        )

    def same_image(self, layer: Any, source: ImageSource) -> dict[str, Any] | None:
        """The identity of a layer's image as far as it is had at once, and for the rest what the job says of its own.

        None where nothing can be told: of an array that would have to be computed. Whether every pixel is the same is
        found out by the engine when the job is begun.
        """
        if not isinstance(source, ArraySource):
            return dict(source.identity())
        begun = self.header.get("image", {})
        if begun.get("format") != "array":
            return {"format": "array"}
        coarsest = layer.data[-1] if layer.multiscale else layer.data
        if not isinstance(coarsest, np.ndarray):
            return None
        return {**begun, **source.quick_identity()}
