"""How the rows of a profile were measured."""

from typing import Any

from msgspec import Struct

from edge.profile.trial import Count, NotNegative


class Method(Struct, frozen=True, kw_only=True):
    """The method of measurement; `finished` is False for a run that was interrupted.

    `repetitions` are trials per row, `order` has the rows in running order, a list per round;
    `peak_memory` names the system's figure behind peak_memory_bytes. With `in_turns` the processes
    of a round take turns, trial by trial. `baseline` is the row of --baseline, `until_percent` the
    difference at which --until stopped adding rounds, `vs_software` the versions in the
    environment of --vs. `fleet_number` counts the devices of a run of --each from 1.
    """

    decode_rate: str = "not stated"
    excluded: list[str] = []
    warmups: Count | None = None
    repetitions: Count | None = None
    processes_per_row: Count | None = None
    trials_per_process: Count | None = None
    min_window_s: NotNegative | None = None
    max_passes: Count | None = None
    cooldown_limit_s: NotNegative | None = None
    power: str | None = None
    seed: int | None = None
    clock: str | None = None
    peak_memory: str | None = None
    float32_products: str | None = None
    order: list[list[str]] = []
    idle: dict[str, Any] | None = None
    finished: bool = True
    in_turns: bool = False
    baseline: str | None = None
    until_percent: NotNegative | None = None
    vs_software: dict[str, str] = {}
    fleet_number: Count | None = None
