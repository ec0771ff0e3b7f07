"""`s`: a program's prompt so far and its variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lang.backends.base import Call, CallError
from lang.primitives import Gen, Select, parts_of
from lang.sampling import closest

Submit = Callable[[Gen | Select, str], Call]
Wait = Callable[[Call], None]


class ProgramState:
    """The first argument of every program.

    `s += text | gen(...) | select(...)` extends the prompt; `s["x"]` reads a variable, waiting for the call that makes
    it. A call is sent as soon as its prompt is known, and the program goes on until it needs the answer.
    """

    def __init__(self, submit: Submit, wait: Wait) -> None:
        self._submit = submit
        self._wait = wait
        self._parts: list[str | Call] = []
        self._variables: dict[str, Any] = {}
        self._error: BaseException | None = None
        self.ret_value: Any = None
        """What the program returned."""

    def __iadd__(self, part: object) -> ProgramState:
        for piece in parts_of(part):
            if isinstance(piece, Gen | Select):
                call = self._submit(piece, self.text())
                self._parts.append(call)
                if piece.name is not None:
                    self._variables[piece.name] = call
            else:
                assert isinstance(piece, str)
                self._parts.append(piece)
        return self

    def __getitem__(self, name: str) -> Any:
        """The variable's value: text, or a list of texts for n > 1.

        Raises KeyError when the program has none of that name, CallError when the call that makes it failed.
        """
        value = self._variable(name)
        if not isinstance(value, Call):
            return value
        self._done(value)
        return list(value.texts) if len(value.texts) > 1 else value.text

    def __setitem__(self, name: str, value: Any) -> None:
        self._variables[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._variables

    def text(self) -> str:
        """The whole prompt with all outputs so far; waits for those on their way."""
        joined = "".join(part if isinstance(part, str) else self._done(part).text for part in self._parts)
        self._parts = [joined]
        return joined

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """Token counts, finish reason and scores of the call that made the variable (see `Call.meta`)."""
        value = self._variable(name)
        if not isinstance(value, Call):
            raise KeyError(f"variable {name!r} was set by the program: no call made it, so it has no meta info")
        return self._done(value).meta

    def error(self) -> BaseException | None:
        """What ended the program early, or None."""
        return self._error

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            if self._error is not None:
                raise KeyError(f"no variable {name!r}: the program failed before it was made") from self._error
            known = ", ".join(map(repr, self._variables)) or "none yet"
            raise KeyError(f"no variable {name!r}{closest(name, self._variables)} variables: {known}")
        return self._variables[name]

    def _done(self, call: Call) -> Call:
        if not call.finished:
            self._wait(call)
        if call.error is not None:
            raise CallError(f"{call.name or 'an unnamed call'!r} failed: {call.error}")
        return call
