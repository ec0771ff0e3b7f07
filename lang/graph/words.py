"""Operations and expressions of a graph in words, for all of its views."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from lang.graph.expressions import (
    Argument,
    Constant,
    Expression,
    Formatted,
    InMemory,
    Item,
    Items,
    Picture,
    PictureOf,
    Record,
    Result,
    Round,
    Template,
)
from lang.graph.ops import (
    Append,
    Apply,
    Cond,
    End,
    Fork,
    Gen,
    Join,
    Loop,
    Operation,
    Prefetch,
    Read,
    Role,
    Scope,
    Select,
    Set,
    Start,
    Write,
)

_INFIX = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*"}


class Words(NamedTuple):
    does: str
    """`gen "answer"`"""
    takes: str
    """What it takes, and how it is done. May be empty."""


def words(op: Operation, limit: int = 60) -> Words:
    """One line each, whatever is in the graph. Texts are cut after `limit` characters."""

    def put(expression: Expression) -> str:
        return shown(expression, limit)

    match op:
        case Write(part=part, movable=movable):
            return Words("write", put(part) + _also("movable", movable))
        case Role(role=role, begins=begins, movable=movable):
            return Words(f"{_begin(begins)} {plain(role)}", _also("movable", movable).strip())
        case Gen():
            return Words(_named("gen", op.name, limit), " ".join(_of_gen(op, limit)))
        case Select():
            takes = [f"[{', '.join(map(put, op.choices))}]", plain(op.method)]
            if op.how != "score":
                takes.append(f"by {op.how}")
            if op.same_as is not None:
                takes.append(f"same as %{op.same_as}")
            return Words(_named("select", op.name, limit), " ".join(takes))
        case Set(name=name, value=value):
            return Words(_named("set", name, limit), f"= {put(value)}")
        case Fork(branches=branches):
            return Words("fork", f"into {_streams(branches)}")
        case Join(fork=fork, branches=branches, mode=mode):
            return Words("join", f"%{fork}: {_streams(branches)} {plain(mode)}")
        case Scope(name=name, begins=begins):
            return Words(_named(f"{_begin(begins)} scope", name, limit), "")
        case Read(what="text"):
            return Words("read text", "all so far")
        case Read(what=what, name=name):
            return Words(_named("read" if what == "value" else f"read {what} of", name, limit), "")
        case Append(of=of):
            return Words("append", f"all of s{of}")
        case Apply():
            return Words("apply", f"{_applied(op, limit)}{'' if op.pure else ' (not pure)'}")
        case Start(program=program, child=child):
            return Words(f"start {plain(program)}", f"on s{child}")
        case End(child=child, awaited=awaited):
            return Words("end", f"s{child}{', awaited' if awaited else ''}")
        case Prefetch(prefix=prefix, steps=steps):
            parts = [put(part.part) if isinstance(part, Write) else words(part, limit).does for part in prefix]
            return Words("prefetch", f"in {steps} calls: {', '.join(parts)}")
        case Cond(test=test):
            return Words("cond", put(test))
        case Loop(limit=rounds, until=until):
            return Words("loop", f"at most {rounds} times{_until(until, limit)}")
    raise TypeError(f"{type(op).__name__} has no words")


def region_names(op: Operation) -> tuple[str, ...]:
    """Of its regions, in their order."""
    return ("then", "otherwise") if isinstance(op, Cond) else ("round",) if isinstance(op, Loop) else ()


def answered_by(op: Operation) -> Iterator[int]:
    """The calls whose answer is its answer, too."""
    if isinstance(op, Gen | Select) and op.same_as is not None:
        yield op.same_as
    if isinstance(op, Gen) and op.sample_of is not None:
        yield op.sample_of[0]


def line_of(op: Operation) -> str:
    """Its line in the program, the file without its folders."""
    return plain(re.split(r"[/\\]", op.line)[-1])


def shown(expression: Expression, limit: int = 60) -> str:
    """As in Python, constants as in JSON, with %n for the result of operation n."""
    match expression:
        case str():
            return quoted(expression, limit)
        case Constant(value=value):
            return _cut(plain(json.dumps(value, ensure_ascii=False)), limit)
        case InMemory(value=value):
            return _cut(plain(repr(value)), limit)
        case Template(parts=parts):
            return f'f"{_cut("".join(_in_template(part, limit) for part in parts), limit)}"'
        case Formatted():
            return f'f"{_in_template(expression, limit)}"'
        case Items(parts=parts, a_tuple=a_tuple):
            inside = ", ".join(shown(part, limit) for part in parts)
            return f"({inside},)" if a_tuple else f"[{inside}]"
        case Record(entries=entries):
            return "{" + ", ".join(f"{shown(key, limit)}: {shown(value, limit)}" for key, value in entries) + "}"
        case Picture(media_type=media_type, data=data):
            return f"<{plain(media_type)}, {len(data) * 3 // 4} bytes>"
        case PictureOf(of=of):
            return f"image({shown(of, limit)})"
        case Argument(name=name):
            return plain(name)
        case Result(op=op):
            return f"%{op}"
        case Round(loop=loop):
            return f"round(%{loop})"
        case Item(of=of, at=at):
            return f"{shown(of, limit)}[{at}]"


def quoted(text: str, limit: int = 60) -> str:
    """In quotes, in one line; cut after `limit` characters."""
    return f'"{_cut(_escaped(text[: limit + 1]), limit)}"'


def plain(text: str) -> str:
    """In one line: what can't be printed is written as Python would."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _escaped(text: str) -> str:
    return plain(text.replace("\\", "\\\\").replace('"', '\\"'))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _in_template(part: Expression, limit: int) -> str:
    if isinstance(part, str):
        return _escaped(part[: limit + 1]).replace("{", "{{").replace("}", "}}")
    if isinstance(part, Formatted):
        conversion = f"!{part.conversion}" if part.conversion else ""
        spec = f":{_in_template(part.spec, limit)}" if part.spec != "" else ""
        return f"{{{shown(part.of, limit)}{conversion}{spec}}}"
    return f"{{{shown(part, limit)}}}"


def _of_gen(op: Gen, limit: int) -> Iterator[str]:
    for name, value in op.sampling.items():
        yield f"{plain(name)}={_cut(plain(json.dumps(value, ensure_ascii=False)), limit)}"
    if op.same_as is not None:
        yield f"same as %{op.same_as}"
    if op.sample_of is not None:
        yield f"sample {op.sample_of[1]} of %{op.sample_of[0]}"
    if op.n_samples > 1:
        yield f"asked for {op.n_samples} samples"
    if op.text is not None:
        yield f"is {quoted(op.text, limit)}, no call"


def _applied(op: Apply, limit: int) -> str:
    args = [shown(arg, limit) for arg in op.args]
    name = op.function.removeprefix("operator.").removeprefix("builtins.").rpartition(":")[2]
    if op.function.startswith("operator.") and len(args) == 2 and not op.kwargs:
        if name in _INFIX:
            return f"{args[0]} {_INFIX[name]} {args[1]}"
        if name == "getitem":
            return f"{args[0]}[{args[1]}]"
    args += [f"{plain(key)}={shown(value, limit)}" for key, value in op.kwargs.items()]
    return f"{plain(name)}({', '.join(args)})"


def _named(what: str, name: str | None, limit: int) -> str:
    return what if name is None else f"{what} {quoted(name, limit)}"


def _begin(begins: bool) -> str:
    return "begin" if begins else "end"


def _also(what: str, number: int | None) -> str:
    return "" if number is None else f" ({what} {number})"


def _streams(streams: tuple[int, ...]) -> str:
    if len(streams) > 6:
        return f"s{streams[0]} ... s{streams[-1]} ({len(streams)})"
    return ", ".join(f"s{stream}" for stream in streams)


def _until(until: Expression, limit: int) -> str:
    never = isinstance(until, Constant) and until.value is False
    return "" if never else f", until {shown(until, limit)}"
