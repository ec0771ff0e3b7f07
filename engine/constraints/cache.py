"""Compiled grammars by content, so that a grammar that many requests share is compiled once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

from engine.clock import stopwatch
from engine.constraints.base import Backend, Compiled, GrammarError
from engine.constraints.grammar import Grammar

GRAMMAR_BYTES = 96 << 10
BYTES_A_TEXT_BYTE = 48
FAILURE_BYTES = 2 << 10

_Outcome = Compiled | GrammarError


class GrammarCache:
    """Keeps what a backend made of each grammar, failures included, and drops the least recently used ones.

    Libraries don't say what a compiled grammar takes, so its size is an estimate: 96 KiB and 48 bytes for each of its
    text (llguidance takes about 100 KiB for a schema of 0.4 KiB, 260 for 4.5 and 1,900 for 42), 2 KiB for a failure.
    """

    def __init__(self, backend: Backend, *, max_bytes: int) -> None:
        """max_bytes: of all that is kept, by that estimate. 0 keeps nothing."""
        self.backend = backend
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[_Outcome, int]] = OrderedDict()
        self._under_way: dict[str, Future[_Outcome]] = {}

    def __len__(self) -> int:
        """Grammars kept, failures included."""
        return len(self._kept)

    def get(self, grammar: Grammar) -> tuple[Compiled, float]:
        """The compiled grammar and the seconds that this call spent on compiling it: 0.0 if another one did.

        Any thread may call it; of several that ask for the same grammar at once, one compiles and the others wait.
        Raises GrammarError, the same again for a grammar that failed before.
        """
        digest = grammar.digest
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return _compiled(self._kept[digest][0]), 0.0
            theirs = self._under_way.get(digest)
            if theirs is None:
                mine = self._under_way[digest] = Future[_Outcome]()
        if theirs is not None:
            return _compiled(theirs.result()), 0.0
        begun = stopwatch()
        try:
            outcome: _Outcome = self.backend.compile(grammar)
        except GrammarError as error:
            outcome = error
        except BaseException as error:  # no verdict on the grammar: nothing to remember
            with self._lock:
                del self._under_way[digest]
            mine.set_exception(error)
            raise
        seconds = stopwatch() - begun
        with self._lock:
            del self._under_way[digest]
            self._keep(grammar, outcome)
        mine.set_result(outcome)
        return _compiled(outcome), seconds

    def _keep(self, grammar: Grammar, outcome: _Outcome) -> None:
        if isinstance(outcome, GrammarError):
            size = FAILURE_BYTES
        else:
            size = GRAMMAR_BYTES + BYTES_A_TEXT_BYTE * len(grammar.text.encode())
        if size > self.max_bytes:
            return
        self._kept[grammar.digest] = outcome, size
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.n_bytes -= dropped


def _compiled(outcome: _Outcome) -> Compiled:
    if isinstance(outcome, GrammarError):
        raise GrammarError(str(outcome))  # a new one: an exception that is raised again collects tracebacks
    return outcome
