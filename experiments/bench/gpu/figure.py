"""One measured figure: beside its floor, its target, and what others need for the same job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.kernels.roofline import Ceilings, Work, floor_s

Aim = Literal["share", "at least", "at most"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str
    value: float
    """In `unit`; seconds where there is a floor."""
    unit: str = "s"
    work: Work | None = None
    """What was counted: its least time at this GPU's own ceilings is the floor."""
    floor: float | None = None
    """Seconds."""
    target: float | None = None
    aim: Aim = "share"
    """The target is the least share of the floor, or a bound of the value itself."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """What others take for the same job, in the same unit."""
    error: float | None = None
    """||out - reference|| / ||reference||, measured before the timing."""
    note: str = ""

    @property
    def share(self) -> float | None:
        """floor / value: 1 is as fast as this GPU can be."""
        return None if self.floor is None or not self.value else self.floor / self.value

    @property
    def met(self) -> bool | None:
        """None without a target."""
        if self.target is None:
            return None
        if self.aim == "at most":
            return self.value <= self.target
        if self.aim == "at least":
            return self.value >= self.target
        return self.share is not None and self.share >= self.target

    def line(self) -> str:
        """For the terminal."""
        parts = [f"{self.name}: {with_unit(self.value, self.unit)}"]
        if self.share is not None:
            parts.append(f"{self.share:.1%} of the floor")
        if self.target is not None:
            parts.append(f"target {target_text(self.as_json())}")
        parts += [f"{name} {with_unit(value, self.unit)}" for name, value in self.beside.items()]
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        work = self.work
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bytes": None if work is None else work.bytes,
            "operations": None if work is None else work.operations,
            "floor_s": self.floor,
            "share_of_floor": self.share,
            "target": self.target,
            "target_is": None if self.target is None else self.aim,
            "met": self.met,
            "beside": dict(self.beside),
            "error": self.error,
            "note": self.note,
        }


def against_floor(name: str, seconds: float, work: Work, ceilings: Ceilings, **fields: Any) -> Figure:
    """A time beside the least time that `work` takes at the measured ceilings."""
    return Figure(name=name, value=seconds, work=work, floor=floor_s(work, ceilings), **fields)


def with_unit(value: float, unit: str) -> str:
    """`0.00123`, `s` -> `1.23 ms`; `7.9e14`, `FLOP/s` -> `790 TFLOP/s`."""
    if unit == "share":
        return f"{value:.1%}"
    if unit.endswith("/s"):
        prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
        size, prefix = next(((size, prefix) for size, prefix in prefixes if value >= size), (1.0, ""))
        return f"{value / size:.4g} {prefix}{unit}"
    if unit != "s":
        return f"{value:.4g} {unit}"
    for scale, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * scale >= 1 or name == "µs":
            return f"{value * scale:.4g} {name}"
    raise AssertionError


def target_text(figure: Mapping[str, Any]) -> str:
    """Of a figure as JSON: `85% of the floor`, `at least 8 x`."""
    if figure["target"] is None:
        return ""
    if figure["target_is"] == "share":
        return f"{figure['target']:.0%} of the floor"
    return f"{figure['target_is']} {with_unit(figure['target'], figure['unit'])}"
