"""The finite-state machine behind the interface of `engine.constraints.base`: regexes and choices."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence

from engine.constraints import limits as text_limits
from engine.constraints.base import GrammarError, GrammarLimits, Mask
from engine.constraints.canonical import Canonical
from engine.constraints.fsm.automaton import DEAD, START, Automaton, compile_tree
from engine.constraints.fsm.compressed import Compressed
from engine.constraints.fsm.regex_syntax import Concat, Either, parse, text_node
from engine.constraints.fsm.vocabulary_tree import VocabularyTree
from engine.constraints.grammar import Grammar, Kind
from engine.tokenizer import Tokenizer

_KEPT_MASKS = 256
"""Of one grammar."""


class FsmBackend:
    """Our own machine for one tokenizer. vocab_size: of the model; eos: the ids that end an output."""

    name = "fsm"

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int], limits: GrammarLimits) -> None:
        self._limits = limits
        self._tree = VocabularyTree(tokenizer, vocab_size=vocab_size, eos=eos)
        self._canonical = Canonical(tokenizer, vocab_size=vocab_size, eos=eos)

    def compile(self, grammar: Grammar) -> FsmGrammar:
        """Raises GrammarError."""
        text_limits.check(grammar, self._limits)
        if grammar.kind is Kind.REGEX:
            tree = parse(grammar.text)
        elif grammar.kind is Kind.CHOICE:
            tree = Either(tuple(map(text_node, json.loads(grammar.text))))
        else:
            raise GrammarError(
                f"grammar_backend=fsm serves regex and choice, not {grammar.kind.value}: start the engine with "
                "grammar_backend=llguidance"
            )
        if grammar.head:
            tree = Concat((text_node(grammar.head), tree))
        return FsmGrammar(compile_tree(tree, self._limits), self._tree, self._canonical)


class FsmGrammar:
    """An automaton with the masks of the states that outputs have been in."""

    def __init__(self, automaton: Automaton, tree: VocabularyTree, canonical: Canonical) -> None:
        self.automaton = automaton
        self.compressed = Compressed(automaton)
        self.tree = tree
        self.canonical = canonical
        self._masks: OrderedDict[int, Mask] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self) -> FsmMatcher:
        return FsmMatcher(self)

    def mask(self, state: int) -> Mask:
        with self._lock:
            if state in self._masks:
                self._masks.move_to_end(state)
                return self._masks[state]
        mask = self.tree.mask(self.automaton, state)
        with self._lock:
            self._masks[state] = mask
            if len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask


class FsmMatcher:
    """A state, and the last bytes before it."""

    def __init__(self, grammar: FsmGrammar) -> None:
        self._grammar = grammar
        self._state = START
        self._tail = b""
        self._ended = False
        """An end-of-sequence token was accepted."""

    @property
    def complete(self) -> bool:
        automaton = self._grammar.automaton
        return self._ended or (bool(automaton.accepting[self._state]) and not automaton.next_bytes(self._state))

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self._allows(token):
                raise GrammarError(f"token {token} is not allowed by the grammar here")
            self._ended = token in self._grammar.tree.eos
            if not self._ended:
                text = self._grammar.tree.text(token)
                self._state = self._grammar.automaton.walk(self._state, text)
                self._tail = (self._tail + text)[-3:]

    def _allows(self, token: int) -> bool:
        automaton, tree = self._grammar.automaton, self._grammar.tree
        if self._ended:
            return False
        if token in tree.eos:
            return bool(automaton.accepting[self._state])
        text = tree.text(token)
        return bool(text) and automaton.walk(self._state, text) != DEAD

    def forced_bytes(self) -> bytes:
        """What comes next whatever is chosen."""
        return b"" if self._ended else self._grammar.compressed.forced(self._state)[0]

    def forced(self) -> list[int]:
        if self._ended:
            return []
        text, then = self._grammar.compressed.forced(self._state)
        following = self._grammar.automaton.next_bytes(then)
        return self._grammar.canonical.ids(text, following=following, tail=self._tail) if text else []

    def fill(self, mask: Mask) -> None:
        mask[:] = self._grammar.tree.ends if self._ended else self._grammar.mask(self._state)
        if not mask.any():
            raise GrammarError("the grammar can't go on: no token of the model's vocabulary fits what must come next")
