"""A stand-in for the training process that speaks its language in moments: ``python fake_trainer.py PACE``.

It learns nothing: at its second step it writes a copy of the model file named by FAKE_TRAINER_MODEL. PACE is the
number of seconds that a step takes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.unfinished import KEY, STATE, checkpoint_folder, unfinished
from safetensors.numpy import save_file


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def line_of_input() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            return b""
        line += more
    return line


def leave(output: Path, step: int, steps: int, figures: dict[str, Any]) -> None:
    """A checkpoint without weights."""
    facts = {"step": step, "best_step": min(step, 2), "recipe": {"steps": steps}, "figures": figures}
    path = checkpoint_folder(output) / STATE
    path.parent.mkdir(exist_ok=True)
    save_file({"none": np.zeros(1)}, path, metadata={KEY: json.dumps(facts)})


def begun(output: Path) -> int:
    state = unfinished(output)
    return 0 if state is None else state.step


def main() -> None:
    pace = float(sys.argv[1])
    orders = {"stop": False}
    job = json.loads(line_of_input())

    def listen() -> None:
        while not orders["stop"]:
            orders["stop"] = line_of_input() in (b"stop\n", b"")

    threading.Thread(target=listen, daemon=True).start()
    output, steps = Path(job["output"]), int(job["options"]["steps"])
    better = Path(os.environ["FAKE_TRAINER_MODEL"])
    say(kind="started", pid=os.getpid(), device="cpu", precision="float32", threads=1)
    before, after = {"miou": 0.3, "iou_red": 0.3}, {"miou": 0.6, "iou_red": 0.6}
    say(kind="progress", done=0, total=steps, stage="validate", seconds_left=None, figures=before)
    first = begun(output) if job.get("resume") else 0
    for step in range(first + 1, steps + 1):
        time.sleep(pace)
        say(kind="progress", done=step, total=steps, stage="train", seconds_left=1.0, figures={"loss": 1 / step})
        if step == 2:
            shutil.copyfile(better, output.with_suffix(".part"))
            os.replace(output.with_suffix(".part"), output)
            say(kind="progress", done=step, total=steps, stage="validate", seconds_left=1.0, figures=after)
            say(kind="improved", model=str(output), figures=after)
        if orders["stop"]:
            break
    result = {"model": str(output) if output.is_file() else None, "steps": step, "best_step": 2}
    result |= {"held_out_before": before, "held_out_after": after}
    if orders["stop"]:
        leave(output, step, steps, {"before": before, "after": after})
        say(kind="stopped", result={**result, "of": steps})
    else:
        say(kind="finished", result={**result, "new_classes": [], "reason": ""})


if __name__ == "__main__":
    main()
