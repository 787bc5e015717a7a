"""Learning rate as a plain function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

from napari_isdnet_training.config import ScheduleConfig


def learning_rate(step: int, steps: int, base: float, schedule: ScheduleConfig) -> float:
    """Rate of step ``step`` (0-based) of ``steps``.

    ``poly``: ``floor + (base - floor) * (1 - step / steps) ** power``, the paper's section 4.2 (power 0.9); the floor
    is the published configuration's ``min_lr``. During ``warmup_steps`` the value is multiplied by a line that
    starts above zero and reaches one at the end of the warm-up.
    """
    if schedule.policy == "constant":
        rate = base
    else:
        floor = min(schedule.floor, base)
        rate = floor + (base - floor) * max(0.0, 1 - step / steps) ** schedule.power
    if step < schedule.warmup_steps:
        rate *= (step + 1) / (schedule.warmup_steps + 1)
    return rate
