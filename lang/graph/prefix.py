"""What every run of a program begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lang.abstract import TraceError
from lang.graph.expressions import Picture, Template
from lang.graph.ops import CALLS, Apply, Operation, Read, Role, Scope, Set, Write
from lang.graph.tracer import Trace
from lang.prompt import Piece, Prompt, RoleMark

if TYPE_CHECKING:
    from lang.function import Program


def constant_prefix(program: Program) -> Prompt:
    """Of the program with its bound arguments, before its first call and the first thing that a run decides."""
    trace = Trace(program, {})
    try:
        return constant_part(trace.graph().ops)
    except TraceError:  # it decides something: what came before stands
        return constant_part(trace.tracer.ops)


def constant_part(ops: tuple[Operation, ...]) -> Prompt:
    """What the program's own stream begins with in every run."""
    pieces: list[Piece] = []
    for op in ops:
        if isinstance(op, Read | Apply | Set | Scope):
            continue
        if isinstance(op, Role) and op.stream == 0:
            pieces.append(RoleMark(op.role, op.begins))
        elif isinstance(op, Write) and op.stream == 0:
            parts = op.part.parts if isinstance(op.part, Template) else (op.part,)
            for part in parts:
                if isinstance(part, str):
                    pieces.append(part)
                elif isinstance(part, Picture):
                    pieces.append(part.image)
                else:
                    return Prompt.of(pieces)
        elif isinstance(op, CALLS) or op.stream in (0, -1) or 0 in op.streams:
            break
    return Prompt.of(pieces)
