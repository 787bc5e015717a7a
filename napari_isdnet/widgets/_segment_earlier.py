"""The job that lies in the folder already: whether it is the one that is asked for, and else what differs. No Qt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet.engine.differences import job_differences
from napari_isdnet.engine.ledger import read_about, read_header
from napari_isdnet.exceptions import InputError
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
            "roi": None if roi is None else [roi.row, roi.column, roi.height, roi.width],
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

    def hint(self, differences: list[str], replace: bool) -> str:
        """One sentence below the button."""
        if self.damaged:
            return self.damaged
        if not differences:
            return "An earlier job of this image lies in the folder: what is done is not computed again."
        begun = f"The job in the folder was begun with {'; '.join(differences)}:"
        return f"{begun} it is replaced." if replace else f"{begun} {WAY_OUT}"


WAY_OUT = "tick 'Replace' to start again, or choose another folder."
