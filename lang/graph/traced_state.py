"""`s` while a program is traced: notes what is written, and gives values that stand for what will be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from lang import primitives
from lang.abstract import TraceError, at_line, is_abstract
from lang.graph.expressions import Expression, Item, PictureOf, Result
from lang.graph.known import DATA, TEXT, Held, Known, Listed, Names
from lang.graph.ops import Append, Fork, Gen, Join, Read, Role, Scope, Select, Set, Write
from lang.graph.sampling import as_json
from lang.graph.values import Value, expression_of
from lang.group import JOINS
from lang.prompt import Image, RoleMark
from lang.sampling import closest

if TYPE_CHECKING:
    from lang.graph.tracer import Tracer


class TracedState:
    """Has what `lang.state.ProgramState` has. What a graph can't hold is refused where it is asked for."""

    def __init__(self, tracer: Tracer, stream: int, like: TracedState | None = None) -> None:
        self.stream = stream
        self.tracer = tracer
        self.names: Names = like.names.copy() if like is not None else Names()
        self.role: str | None = like.role if like is not None else None
        self.scopes: list[str] = []
        self.closed = ""
        self.ret_value: Any = None

    # ---- writing

    def __iadd__(self, part: object) -> TracedState:
        if self.closed:
            raise RuntimeError(f"this {self.closed}: nothing can be added to it")
        self.tracer.check_here(self)
        if not is_abstract(part) and isinstance(part, TracedState):
            self.tracer.check_here(part)
            self.tracer.add(Append, stream=self.stream, of=part.stream)
            return self
        for piece in primitives.parts_of(part):
            self._add(piece)
        return self

    def system(self, expr: object = None) -> Any:
        return self._in_role("system", expr)

    def user(self, expr: object = None) -> Any:
        return self._in_role("user", expr)

    def assistant(self, expr: object = None) -> Any:
        return self._in_role("assistant", expr)

    def _in_role(self, role: str, expr: Any) -> Any:
        if not is_abstract(expr) and expr is None:
            return self._role_block(role)
        self += {"system": primitives.system, "user": primitives.user, "assistant": primitives.assistant}[role](expr)
        return self

    @contextmanager
    def _role_block(self, role: str) -> Iterator[None]:
        self._add(RoleMark(role, True))
        yield
        self._add(RoleMark(role, False))

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        self.tracer.check_here(self)
        _check_name(name)
        self.tracer.add(Scope, stream=self.stream, name=name, begins=True)
        self.scopes.append(name)
        yield
        self.scopes.remove(name)
        self.tracer.add(Scope, stream=self.stream, name=name, begins=False)
        self.names.put(name, TEXT)

    def sleep(self, seconds: float) -> None:
        raise TraceError(f"{at_line()}: s.sleep() has no place in a graph; run the program as it is")

    def fork(self, n: Any = 1) -> TracedGroup:
        if is_abstract(n):
            raise TraceError(f"{at_line()}: fork(n) of {n!r}: the number of branches must be known; {n._way()}")
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"fork({n!r}) is not allowed: it takes the number of branches, 1 or more")
        self.tracer.check_here(self)
        branches = [self.tracer.new_state(self) for _ in range(n)]
        number = self.tracer.add(Fork, stream=self.stream, branches=tuple(branch.stream for branch in branches))
        return TracedGroup(self, branches, number)

    @contextmanager
    def copy(self) -> Iterator[TracedState]:
        group = self.fork(1)
        yield group[0]
        group.join()

    def _add(self, piece: object) -> None:
        stream, tracer = self.stream, self.tracer
        if is_abstract(piece) or isinstance(piece, Image | primitives.ImageOf):
            tracer.add(Write, stream=stream, part=_part(piece))
        elif isinstance(piece, str):
            if piece:
                tracer.add(Write, stream=stream, part=piece)
        elif isinstance(piece, primitives.Movable):
            self._add_movable(piece)
        elif isinstance(piece, RoleMark):
            self._turn(piece)
            tracer.add(Role, stream=stream, role=piece.role, begins=piece.begins)
        elif isinstance(piece, primitives.Gen):
            sampling = {**tracer.sampling, **piece.sampling}
            tracer.add(Gen, stream=stream, name=piece.name, sampling=as_json(sampling))
            n = sampling.get("n", 1)
            if piece.name is not None:
                self.names.put(piece.name, TEXT if n == 1 else Listed((TEXT,) * n))
        elif isinstance(piece, primitives.Select):
            if piece.recorded is not None:
                raise TraceError(f"{at_line()}: select(recorded=...) has no place in a graph; leave it out there")
            choices = tuple(expression_of(choice) for choice in piece.choices)
            tracer.add(Select, stream=stream, name=piece.name, choices=choices, method=_method(piece))
            if piece.name is not None:
                self.names.put(piece.name, TEXT)
        else:
            raise TraceError(f"{at_line()}: {type(piece).__name__} has no place in a graph")

    def _add_movable(self, piece: primitives.Movable) -> None:
        number, stream = self.tracer.new_movable(), self.stream
        for part in piece.parts:
            if not is_abstract(part) and isinstance(part, RoleMark):
                self._turn(part)
                self.tracer.add(Role, stream=stream, role=part.role, begins=part.begins, movable=number)
            else:
                of = (
                    PictureOf(of=expression_of(part.source))
                    if type(part) is primitives.ImageOf
                    else expression_of(part)
                )
                self.tracer.add(Write, stream=stream, part=of, movable=number)

    def _turn(self, mark: RoleMark) -> None:
        if mark.begins and self.role is not None:
            raise ValueError(f"{mark.role}() inside {self.role}(): roles can't be nested; end {self.role}() first")
        if not mark.begins and self.role != mark.role:
            inside = f"inside {self.role}()" if self.role else "outside of any role"
            raise ValueError(f"{mark.role}_end() {inside}: it ends what {mark.role}_begin() began")
        self.role = mark.role if mark.begins else None

    def check_ended(self) -> None:
        self.closed = ""

    # ---- variables

    def __getitem__(self, name: str) -> Any:
        known = self.names.sure.get(name, self.names.maybe.get(name))
        if known is None:
            raise self._unknown(name)
        if isinstance(known, Held):
            return known.value
        return self._value(Result(op=self._read("value", name)), known, f"variable {name!r}")

    def _value(self, expression: Expression, known: Known, what: str) -> Any:
        if isinstance(known, Listed):
            return [
                self._value(Item(of=expression, at=i), kind, f"item {i} of {what}")
                for i, kind in enumerate(known.kinds)
            ]
        return Value(self.tracer, expression, what, is_text=known == TEXT)

    def _read(self, what: str, name: str | None = None) -> int:
        self.tracer.check_here(self)
        return self.tracer.add(Read, stream=self.stream, what=what, name=name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.tracer.check_here(self)
        _check_name(name)
        self.tracer.add(Set, stream=self.stream, name=name, value=expression_of(value))
        self.names.put(name, Held(value))

    def set_var(self, name: str, value: Any) -> None:
        self[name] = value

    async def get(self, name: str) -> Any:
        return self[name]

    def __contains__(self, name: str) -> bool:
        if name in self.names.maybe:
            raise TraceError(
                f"{at_line()}: whether {name!r} is there isn't known while the program is traced: set it before the "
                "cond or loop that may set it"
            )
        return name in self.names.sure

    def _unknown(self, name: str) -> KeyError:
        known = ", ".join(map(repr, self.names.sure)) or "none yet"
        return KeyError(f"no variable {name!r}{closest(name, self.names.sure)} variables: {known}")

    def _made_by_call(self, name: str, what: str) -> None:
        known = self.names.sure.get(name, self.names.maybe.get(name))
        if known is None:
            raise self._unknown(name)
        if isinstance(known, Held):
            raise KeyError(f"variable {name!r} was set by the program: no call made it, so it has no {what}")

    def text(self) -> Any:
        return Value(self.tracer, Result(op=self._read("text")), "the text so far", is_text=True)

    def get_meta_info(self, name: str) -> Any:
        self._made_by_call(name, "meta info")
        return Value(self.tracer, Result(op=self._read("meta", name)), f"the meta info of {name!r}")

    def tool_calls(self, name: str) -> Any:
        self._made_by_call(name, "tool calls")
        return Value(self.tracer, Result(op=self._read("tool_calls", name)), f"the tool calls of {name!r}")

    def sync(self) -> None:
        """Nothing to wait for: a graph knows itself what waits for what."""

    # ---- what a graph can't hold

    def _refused(self, what: str, instead: str) -> NoReturn:
        raise TraceError(f"{at_line()}: {what} has no place in a graph: {instead}")

    def messages(self) -> NoReturn:
        self._refused("s.messages()", "read the variables, or s.text(); or read messages() when the program has run")

    def error(self) -> NoReturn:
        self._refused("s.error()", "what goes wrong is raised where it is read; or run the program as it stands")

    def text_iter(self, name: str | None = None) -> NoReturn:
        self._refused("s.text_iter()", "iterate over the state that run(stream=True) gives")

    def text_async_iter(self, name: str | None = None, return_meta_data: bool = False) -> NoReturn:
        self._refused("s.text_async_iter()", "iterate over the state that run(stream=True) gives")


class TracedGroup:
    """The branches of a fork while it is traced."""

    def __init__(self, parent: TracedState, branches: Sequence[TracedState], fork: int) -> None:
        self._parent = parent
        self._branches = list(branches)
        self._fork = fork
        self._before = frozenset((*parent.names.sure, *parent.names.maybe))

    def __len__(self) -> int:
        return len(self._branches)

    def __getitem__(self, i: int) -> TracedState:
        return self._branches[i]

    def __setitem__(self, i: int, branch: TracedState) -> None:
        if self._branches[i] is not branch:
            raise TypeError("a branch can't be replaced by another state: add to it with forks[i] += ...")

    def __iter__(self) -> Iterator[TracedState]:
        return iter(self._branches)

    def __iadd__(self, part: object) -> TracedGroup:
        n = len(self._branches)
        listed = not is_abstract(part) and isinstance(part, list | tuple)
        if listed and len(part) != n:  # type: ignore[arg-type]
            raise ValueError(f"forks += a list of {len(part)}, but there are {n} branches: give one for each")  # type: ignore[arg-type]
        for i, branch in enumerate(self._branches):
            if listed:
                branch += part[i]  # type: ignore[index]
            elif not is_abstract(part) and callable(part):
                branch += part(i)
            else:
                branch += part
        return self

    def join(self, mode: str = "gather_variable") -> None:
        if mode not in JOINS:
            raise ValueError(f"unknown mode {mode!r} of join; available: {', '.join(JOINS)}")
        parent = self._parent
        for state in (parent, *self._branches):
            parent.tracer.check_here(state)
        streams = tuple(branch.stream for branch in self._branches)
        parent.tracer.add(Join, stream=parent.stream, fork=self._fork, branches=streams, mode=mode)
        known: dict[str, list[Known] | None] = {}
        for branch in self._branches:
            for name, kind in branch.names.sure.items():
                found = known.setdefault(name, [])
                if found is not None:
                    found.append(TEXT if isinstance(kind, Held) and type(kind.value) is str else _of_branch(kind))
            for name in branch.names.maybe:
                known[name] = None
        for name, kinds in known.items():
            if name not in self._before:
                parent.names.put(name, DATA if kinds is None else Listed(tuple(kinds)))
        for branch in self._branches:
            branch.closed = "branch was joined"


def _check_name(name: Any) -> None:
    if is_abstract(name):
        raise TraceError(
            f"{at_line()}: the name of a variable or scope is {name._told()}, but it must be known while the program "
            f"is traced: use lang.switch(...), or {name._way()}"
        )


def _part(piece: object) -> Expression:
    """Of text, an image or a value that is written."""
    if not is_abstract(piece) and isinstance(piece, primitives.ImageOf):
        return PictureOf(of=expression_of(piece.source))
    return expression_of(piece)


def _of_branch(kind: Known) -> Known:
    return DATA if isinstance(kind, Held) else kind


def _method(select: primitives.Select) -> str:
    from lang.choices import METHODS

    if METHODS.get(select.method.name) is not select.method:
        raise TraceError(f"{at_line()}: the rule {select.method.name!r} of a select isn't one of {', '.join(METHODS)}")
    return select.method.name
