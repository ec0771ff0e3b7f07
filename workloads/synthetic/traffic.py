"""What the laws make: programs with their prefix, their rounds and their pauses, then written in words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

from workloads.exact_text import ExactText
from workloads.synthetic.laws import Lengths, Zipf, arrivals, exponential, geometric


@dataclass(frozen=True, kw_only=True)
class Law:
    """All that can be set; the README has the formulas. Times are seconds, lengths tokens."""

    arrivals: str
    rate_per_s: float
    cv: float
    on_s: float
    off_s: float
    n_prefixes: int
    alpha: float
    prefix: Lengths
    turns: float
    message: Lengths
    think_s: float
    agents: float
    steps: float
    tool: Lengths
    tool_s: float
    output: Lengths


class Round(NamedTuple):
    """Something new is said, then an output comes."""

    pause_s: float
    """Before it."""
    tokens: int
    output_tokens: int


class Plan(NamedTuple):
    """One program, not yet written."""

    at: float | None
    """Seconds after the start; None: the load generator decides."""
    agent: bool
    prefix: int | None
    """Rank of its prefix by popularity."""
    rounds: tuple[Round, ...]


class Turn(NamedTuple):
    """A round, written."""

    pause_s: float
    text: tuple[str, ...]
    """Words of one token each."""
    output: tuple[str, ...]
    """What is recorded as its output."""


class Script(NamedTuple):
    """A program, written: all its turns, the prefix at the head of the first."""

    plan: Plan
    turns: tuple[Turn, ...]


def plans(law: Law, n: int, seed: int) -> list[Plan]:
    """`n` programs. Program i is the same whatever `n` is."""
    zipf = Zipf(law.n_prefixes, law.alpha) if law.n_prefixes else None
    times = arrivals(law.arrivals, law.rate_per_s, law.cv, law.on_s, law.off_s, random.Random(f"{seed}/arrivals"))
    due: list[float | None] = [None] * n if law.arrivals == "none" else list(islice(times, n))
    return [_plan(law, at, zipf, random.Random(f"{seed}/program {i}")) for i, at in enumerate(due)]


def _plan(law: Law, at: float | None, zipf: Zipf | None, rng: random.Random) -> Plan:
    prefix = None if zipf is None else zipf.draw(rng)
    agent = rng.random() < law.agents
    n_rounds = geometric(law.steps if agent else law.turns, rng)
    rounds = []
    for i in range(n_rounds):
        pause = exponential(law.tool_s if agent else law.think_s, rng) if i else 0.0
        new = law.tool if agent and i else law.message
        rounds.append(Round(pause, new.draw(rng), law.output.draw(rng)))
    return Plan(at, agent, prefix, tuple(rounds))


def prefix_tokens(law: Law, seed: int) -> list[int]:
    """Of each prefix, the most popular first; lengths don't depend on popularity."""
    return [law.prefix.draw(random.Random(f"{seed}/prefix {k}")) for k in range(law.n_prefixes)]


def written(planned: Sequence[Plan], law: Law, seed: int, text: ExactText) -> list[Script]:
    """The programs in words: each prefix has a number, and so has every message and output of its own.

    Numbers differ within their first `digits` words, so no message or prefix is shorter than that.
    """
    lengths = prefix_tokens(law, seed)
    digits = text.digits(law.n_prefixes + 2 * sum(len(plan.rounds) for plan in planned))
    number = count(law.n_prefixes)

    def prefix(rank: int | None) -> list[str]:
        return [] if rank is None else text.numbered(rank, max(digits, lengths[rank]), digits)

    def turn(one: Round, head: list[str]) -> Turn:
        new = text.numbered(next(number), max(digits, one.tokens), digits)
        return Turn(one.pause_s, (*head, *new), tuple(text.numbered(next(number), one.output_tokens, digits)))

    return [
        Script(plan, tuple(turn(one, prefix(plan.prefix) if i == 0 else []) for i, one in enumerate(plan.rounds)))
        for plan in planned
    ]


def within(script: Script, opening: int, max_context_tokens: int | None) -> Script:
    """Without the turns from the first on whose prompt and output are longer than that."""
    tokens = opening
    for i, turn in enumerate(script.turns):
        tokens += len(turn.text) + len(turn.output)
        if max_context_tokens is not None and tokens > max_context_tokens:
            return script._replace(turns=script.turns[:i])
    return script


Trie = dict[str, Any]
"""By word: what may follow."""


class Shared(NamedTuple):
    """One call."""

    prompt_tokens: int
    shared_tokens: int
    """Tokens of the prompt that were computed before, and are in a cache without an end."""


def shared_by_brute_force(scripts: Sequence[Script], opening: int) -> list[list[Shared]]:
    """For every call of every program, one program after the other in the order given: what an endless cache finds.

    It knows all prompts and outputs before, but for the last token of each output, whose KV is never computed. A
    prompt's last token is never found. opening: tokens before every text.
    """
    trie: Trie = {}
    found = []
    for script in scripts:
        said: list[str] = [""] * opening
        calls = []
        for turn in script.turns:
            said += turn.text
            calls.append(Shared(len(said), min(_known(trie, said), len(said) - 1)))
            said += turn.output
            _learn(trie, said[:-1])
        found.append(calls)
    return found


def endless_hit_rate(scripts: Sequence[Script], opening: int) -> float:
    """Share of all prompt tokens that `shared_by_brute_force` finds."""
    calls = [call for program in shared_by_brute_force(scripts, opening) for call in program]
    return sum(call.shared_tokens for call in calls) / max(1, sum(call.prompt_tokens for call in calls))


def _known(trie: Trie, words: Sequence[str]) -> int:
    for i, word in enumerate(words):
        if word not in trie:
            return i
        trie = trie[word]
    return len(words)


def _learn(trie: Trie, words: Sequence[str]) -> None:
    for word in words:
        trie = trie.setdefault(word, {})
