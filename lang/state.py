"""`s`: a program's prompt so far and its variables."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lang import awaiting, hinting
from lang.abstract import caller
from lang.group import ProgramStateGroup
from lang.output import Gathered, Later, MetaOf, Output, Source, Span, ToolCallsOf, Trunk, resolved, settled
from lang.primitives import Gen, Select, assistant, system, user, written_parts
from lang.prompt import BranchMark, Image, Piece, Prompt, RoleMark
from lang.sampling import closest
from lang.speculation import SpeculationCount
from lang.streaming import growing, growing_aside
from lang.tools import ToolCall

if TYPE_CHECKING:
    from lang.program_run import ProgramRun
    from lang.runner import Runner


class ProgramState:
    """The first argument of every program.

    `s += text | gen(...) | select(...) | image(...) | user(...)` extends the prompt; `s["x"]` reads a variable, waiting
    for the call that makes it. A call is sent as soon as its prompt is known, and the program goes on until it reads an
    answer that isn't there: until then nothing that goes wrong with a call is raised.
    """

    def __init__(self, runner: Runner, run: ProgramRun) -> None:
        self._runner = runner
        self._run = run
        self._pieces: list[Piece | Output] = []
        self._outputs: list[Output] = []
        self._variables: dict[str, Any] = {}
        self._role: str | None = None
        self._scopes: list[tuple[str, list[Piece | Output]]] = []
        self._trunk: Trunk | None = None
        self._kin: Trunk | None = None
        self._pinned: list[Prompt] = []
        self._last: Output | None = None
        self._closed = ""
        self._line: tuple[str, int] | None = None
        """The program's own line, where it isn't the one that is being executed: a graph's."""
        self.ret_value: Any = None
        """What the program returned."""

    # ---- writing

    def __iadd__(self, part: object) -> ProgramState:
        if self._closed:
            raise RuntimeError(f"this {self._closed}: nothing can be added to it")
        if isinstance(part, ProgramState):
            part._whole()
        for piece in tuple(part._pieces) if isinstance(part, ProgramState) else written_parts(part):
            self._add(piece)
        return self

    def system(self, expr: object = None) -> Any:
        """Adds a system message; without `expr`, a `with` block whose content it is."""
        return self._in_role("system", expr)

    def user(self, expr: object = None) -> Any:
        """As `system`."""
        return self._in_role("user", expr)

    def assistant(self, expr: object = None) -> Any:
        """As `system`."""
        return self._in_role("assistant", expr)

    def _in_role(self, role: str, expr: Any) -> Any:
        if expr is None:
            return self._role_block(role)
        self += {"system": system, "user": user, "assistant": assistant}[role](expr)
        return self

    @contextmanager
    def _role_block(self, role: str) -> Iterator[None]:
        self._add(RoleMark(role, True))
        yield
        self._add(RoleMark(role, False))

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is added in the block is the variable `name`: its text."""
        self._begin_scope(name)
        try:
            yield
        finally:
            self._end_scope(name)

    def fork(self, n: int = 1) -> ProgramStateGroup:
        """`n` branches, each beginning with all that is here; their calls run side by side."""
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"fork({n!r}) is not allowed: it takes the number of branches, 1 or more")
        kin = Trunk(self._prefix(), n) if n > 1 else None
        trunk = kin if kin is not None and self._pieces else self._trunk
        return ProgramStateGroup(self, [self._branch(trunk, kin) for _ in range(n)])

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A branch to try something in; its new variables are gathered at the end of the block, as by `fork(1)`."""
        group = self.fork(1)
        try:
            yield group[0]
        finally:
            group.join()

    def _branch(self, trunk: Trunk | None, kin: Trunk | None) -> ProgramState:
        branch = ProgramState(self._runner, self._run)
        branch._pieces = list(self._pieces)
        branch._outputs = list(self._outputs)
        branch._variables = dict(self._variables)
        branch._role = self._role
        branch._trunk, branch._kin = trunk, kin
        branch._last = self._last
        return branch

    # ---- reading

    def __getitem__(self, name: str) -> Any:
        """The variable's value: text, a list of texts for n > 1, a list with one for each branch after a join.

        Raises KeyError when the program has none of that name, CallError when the call that makes it failed.
        """
        return self._value(self._variable(name))

    async def get(self, name: str) -> Any:
        """`s[name]` in async code: awaits what makes it. Raises as that does."""
        return await awaiting.get(self, name)

    async def ready(self) -> None:
        """`sync` in async code: after it, all that is here can be read without awaiting. Raises nothing."""
        await awaiting.ready(self)

    def __setitem__(self, name: str, value: Any) -> None:
        self._variables[name] = value
        self._runner.wrote(self._run)

    def set_var(self, name: str, value: Any) -> None:
        """`s[name] = value`."""
        self[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._variables

    def text(self) -> str:
        """The whole prompt with all outputs so far; waits for those on their way."""
        return self._settled().text(self._runner.backend.style)

    def messages(self) -> list[dict[str, Any]]:
        """The messages that have ended, as OpenAI writes them; empty without roles. Waits for outputs on their way."""
        prompt = self._settled()
        return [message.as_data() for message in prompt.messages() if not message.open] if prompt.has_roles else []

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """Token counts, finish reason and scores of the call that made the variable (see `Call.meta`)."""
        return self._output(name, "meta info").done().meta

    def speculation(self) -> SpeculationCount:
        """What `num_api_spec_tokens` has brought the whole program so far. Waits for nothing."""
        return self._run.speculation

    def tool_calls(self, name: str) -> tuple[ToolCall, ...]:
        """What the model asked to be called in the output `name`."""
        return self._output(name, "tool calls").done().tool_calls

    def sync(self) -> None:
        """Waits for all that is on its way. Raises nothing: see `error`."""
        for output in self._outputs:
            self._runner.wait(output)

    def error(self) -> BaseException | None:
        """What went wrong in this stream (waits for it), or ended the program early. None if nothing did."""
        self.sync()
        first = next((output.problem for output in self._outputs if output.problem is not None), None)
        return self._run.error if self._run.error is not None else first

    def text_iter(self, name: str | None = None) -> Iterator[str]:
        """The text as it grows: of the variable, or of the whole prompt."""
        return growing(self, name)

    def text_async_iter(self, name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """The same in asyncio code, which has its turn between steps of the backend.

        return_meta_data: gives pairs of text and meta info, which is empty until the output is there.
        """
        return growing_aside(self, name, return_meta_data)

    # ---- time

    def sleep(self, seconds: float) -> None:
        """The program, and nothing else, goes on after so many seconds of the backend's clock: a user thinks, a tool
        works. Raises ValueError for a time below 0, TypeError in an async program."""
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError(f"sleep({seconds!r}) is not allowed: it takes seconds, 0 or more")
        self._runner.sleep(self._run, seconds)

    # ---- telling of what is to come

    def prefetch(self, steps: int, prompt: object = None) -> None:
        """Tells the backend that a call which begins with all that is here, as far as it is known now, comes in about
        `steps` calls; or one that begins with `prompt` (text, images, roles). Advice: it changes no answer."""
        hinting.prefetch(self, steps, prompt)

    def pin(self, seconds: float) -> None:
        """Asks the backend to keep what is here, as far as it is known now, for so many seconds of its clock."""
        hinting.pin(self, seconds)

    def unpin(self) -> None:
        """Takes back what this state has pinned."""
        hinting.unpin(self)

    def end_conversation(self) -> None:
        """Tells the backend that nothing more comes of the run's conversation. Raises ValueError when it has none."""
        hinting.end_conversation(self)

    # ---- within

    def _add(self, piece: object) -> None:
        if isinstance(piece, Gen | Select):
            self._add_call(piece)
            return
        if isinstance(piece, RoleMark):
            self._turn(piece)
        elif isinstance(piece, Output):
            self._outputs.append(piece)
        assert isinstance(piece, str | Image | RoleMark | BranchMark | Output)
        if not isinstance(piece, str):  # outputs and texts of one message follow each other
            self._last = piece if isinstance(piece, Output) else None
        self._pieces.append(piece)
        for _, scope in self._scopes:
            scope.append(piece)
        self._runner.wrote(self._run)

    def _add_open(self, piece: object) -> None:
        """As `_add`. Raises RuntimeError when nothing may be added any more."""
        if self._closed:
            raise RuntimeError(f"this {self._closed}: nothing can be added to it")
        self._add(piece)

    def _add_call(self, expr: Gen | Select, source: Source | None = None) -> Output:
        """source: where the answer comes from, if not from a call of its own."""
        if self._closed:
            raise RuntimeError(f"this {self._closed}: nothing can be added to it")
        where = self._line or caller()
        kin, self._kin = self._kin, None
        output = self._runner.calls.submit(self._run, expr, self._prefix(), where, self._trunk, kin, source, self._last)
        self._add_output(output)
        if not self._run.parallel:
            self._runner.wait(output)
        return output

    def _add_settled(self, expr: Gen | Select, text: str) -> Output:
        """The answer is known: no call is made."""
        output = settled(expr, self._run, self._line or caller(), text)
        self._add_output(output)
        return output

    def _add_first_sample(self, expr: Gen, n: int) -> Output:
        """The first of n samples of one call; `_add_sample` gives the others."""
        asked = Gen(expr.name, {**expr.sampling, "n": n})
        where = self._line or caller()
        kin, self._kin = self._kin, None
        call = self._runner.calls.submit(self._run, asked, self._prefix(), where, self._trunk, kin)
        return self._add_call(expr, Source(call, 0))

    def _add_sample(self, expr: Gen, first: Output, i: int) -> Output:
        if first.source is None or first.source.sample is None:
            return self._add_call(expr)
        return self._add_call(expr, Source(first.source.output, i))

    def _add_output(self, output: Output) -> None:
        if output.expr.name is not None:
            self._variables[output.expr.name] = output
        self._add(output)

    def _record(self) -> list[Piece | Output]:
        """A list that gets all that is added from now on."""
        own: list[Piece | Output] = []
        self._scopes.append(("", own))
        return own

    def _begin_scope(self, name: str) -> None:
        self._scopes.append((name, []))

    def _end_scope(self, name: str) -> None:
        at = next(i for i in reversed(range(len(self._scopes))) if self._scopes[i][0] == name)
        _, scope = self._scopes.pop(at)
        self._variables[name] = Span(tuple(scope))

    def _turn(self, mark: RoleMark) -> None:
        if mark.begins and self._role is not None:
            raise ValueError(f"{mark.role}() inside {self._role}(): roles can't be nested; end {self._role}() first")
        if not mark.begins and self._role != mark.role:
            inside = f"inside {self._role}()" if self._role else "outside of any role"
            raise ValueError(f"{mark.role}_end() {inside}: it ends what {mark.role}_begin() began")
        self._role = mark.role if mark.begins else None

    def _prefix(self) -> tuple[Piece | Output, ...]:
        """All so far, texts joined and outputs that are there written in."""
        if any(isinstance(piece, Output) and not (piece.finished and piece.problem is None) for piece in self._pieces):
            return tuple(self._pieces)
        self._pieces = list(self._known().pieces)
        return tuple(self._pieces)

    def _known(self) -> Prompt:
        """Raises what went wrong with an output in it."""
        return Prompt.of(resolved(self._pieces))

    def _settled(self) -> Prompt:
        self._whole()
        for piece in self._pieces:
            if isinstance(piece, Output):
                self._runner.wait(piece)
        prompt = self._known()
        self._pieces = list(prompt.pieces)
        return prompt

    def _so_far(self) -> tuple[str, Output | None]:
        """The text as far as it has come, and the first output that has yet to come or never will."""
        pieces: list[Piece] = []
        last = None
        for piece in self._pieces:
            if isinstance(piece, Output):
                pieces.append(piece.partial)
                if not piece.finished or piece.problem is not None:
                    last = piece
                    break
            else:
                pieces.append(piece)
        return Prompt.of(pieces).text(self._runner.backend.style), last

    def _whole(self) -> None:
        """Waits until the program has written all of it, unless it is the one that asks."""
        self._runner.wait_for_other(self._run)

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            self._whole()
        if name not in self._variables:
            if self._run.error is not None:
                raise KeyError(f"no variable {name!r}: the program failed before it was made") from self._run.error
            known = ", ".join(map(repr, self._variables)) or "none yet"
            raise KeyError(f"no variable {name!r}{closest(name, self._variables)} variables: {known}")
        return self._variables[name]

    def _output(self, name: str, what: str) -> Output:
        value = self._variable(name)
        if not isinstance(value, Output):
            raise KeyError(f"variable {name!r} was set by the program: no call made it, so it has no {what}")
        self._runner.wait(value)
        return value

    def _value(self, held: Any) -> Any:
        if isinstance(held, Output):
            self._runner.wait(held)
            return held.value()
        if isinstance(held, Gathered):
            return [self._value(value) for value in held.values]
        if isinstance(held, Span):
            for piece in held.pieces:
                if isinstance(piece, Output):
                    self._runner.wait(piece)
            return Prompt.of(resolved(held.pieces)).text(self._runner.backend.style)
        if isinstance(held, Later):
            for output in held.outputs:
                self._runner.wait(output)
            return held.value()
        if isinstance(held, MetaOf | ToolCallsOf):
            self._runner.wait(held.output)
            call = held.output.done()
            return call.meta if isinstance(held, MetaOf) else call.tool_calls
        return held
