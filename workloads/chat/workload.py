"""Chat as a workload."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from lang.function import Program
from workloads.base import DataSource, Job, Outputs, Workload
from workloads.chat.data import Conversations, Turn, load_agents, load_conversations, load_mt_bench
from workloads.chat.program import Asked, conversation, session, synthetic
from workloads.data import DataError
from workloads.lengths import CHARACTERS, lognormal, random_text, shortened
from workloads.room import output_tokens
from workloads.sources import need_at_least, need_one_of

SYNTHETIC = {"short": (4, 8), "long": (256, 512)}
"""Tokens of an answer, drawn uniformly."""
REAL: dict[str, Callable[[str | None], Conversations]] = {
    "mt_bench": load_mt_bench,
    "conversations": load_conversations,
    "agent": load_agents,
}
QUESTION_TOKENS = (256, 512)
"""Of the synthetic questions, as in the paper."""
TURN_TOKENS = 32
"""That a chat template puts around a question and its answer, at most: 20 without one (tiny), 10 in most."""
FILLER = "Then I would say that it depends on what you have, and go through it point by point with you. "
"""What an answer of a given length is made of where none is recorded: repeated, cut to length."""


class Chat(Workload):
    """kind=short|long: the paper's; mt_bench, conversations: real ones in roles; agent: recorded agent sessions."""

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        kind: str = "short",
        n_conversations: int | None = 20,
        n_turns: int | None = 4,
        max_tokens: int = 256,
        max_context_tokens: int | None = None,
        system: str = "",
        think_s: float = 0.0,
        seed: int = 42,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("kind", kind, (*SYNTHETIC, *REAL))
        need_at_least(n_conversations=(n_conversations, 1), n_turns=(n_turns, 1), max_tokens=(max_tokens, 1))
        need_at_least(max_context_tokens=(max_context_tokens, 64))
        if kind in SYNTHETIC and (n_conversations is None or n_turns is None):
            name = "n_turns" if n_turns is None else "n_conversations"
            raise ValueError(f"{name}=null is not allowed with kind={kind}, which has no end: give a number")
        if not isinstance(think_s, int | float) or not 0 <= think_s < 86400:
            raise ValueError(f"think_s={think_s!r} is not allowed: it must be seconds, from 0 to 86400")
        if system and kind in (*SYNTHETIC, "agent"):
            raise ValueError(
                f"system={system!r:.40}: kind={kind} has no roles; it goes with mt_bench and conversations"
            )
        self.data_dir = data_dir
        self.kind = kind
        self.n_conversations = n_conversations
        self.n_turns = n_turns
        self.max_tokens = max_tokens
        self.max_context_tokens = max_context_tokens
        self.system = system
        self.think_s = think_s
        self.seed = seed
        self.asked_outputs = outputs
        self.served_outputs: Sequence[Outputs] = (
            ("fixed", "recorded", "free") if kind in SYNTHETIC else ("recorded", "fixed", "free")
        )
        self._jobs: list[Job] = []

    def load(self) -> None:
        if self.kind in SYNTHETIC:
            told = "random letters and digits, as in the paper"
            self.data = DataSource("made", note=f"{told}; seed {self.seed}")
            made = [self._synthetic(i) for i in range(self.n_conversations or 0)]
            self._make(synthetic, made, len(made) * (self.n_turns or 0))
            return
        self.data, conversations = REAL[self.kind](self.data_dir)
        chosen = [turns[: self.n_turns] for turns in conversations[: self.n_conversations]]
        program = session if self.kind == "agent" else conversation
        self._make(program, [self._real(i, turns) for i, turns in enumerate(chosen)], sum(map(len, chosen)))

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Two short conversations, in a namespace of their own."""
        return [
            self._job(f"warmup/{i}", synthetic, [Asked(f"Warm-up {i}: {FILLER}", FILLER, 8, 0.0)], "warmup")
            for i in range(2)
        ]

    def _make(self, program: Program, conversations: Sequence[Sequence[Asked]], n_turns: int) -> None:
        """n_turns: of all, before any was left out."""
        self._jobs = [self._job(f"chat/{i}", program, turns) for i, turns in enumerate(conversations)]
        if (n := sum(map(len, conversations))) < n_turns:
            note = f"to fit into {self.max_context_tokens} tokens, {n} of {n_turns} turns are asked"
            self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, note))))

    def _synthetic(self, i: int) -> list[Asked]:
        """As many turns as fit."""
        rng = random.Random(f"{self.seed}/{i}")
        turns: list[Asked] = []
        used = 0
        for turn in range(self.n_turns or 0):
            said = random_text(rng, rng.randint(*QUESTION_TOKENS), self.count_tokens)
            n = rng.randint(*SYNTHETIC[self.kind])
            used += self.count_tokens(said) + n
            if self.max_context_tokens is not None and used > self.max_context_tokens:
                break
            answer = self._filler(n) if self.outputs == "recorded" else None  # fixed: exactly n tokens
            turns.append(Asked(said, answer, n, self._thought(rng, turn)))
        if not turns:
            raise DataError(
                f"max_context_tokens={self.max_context_tokens} has no room for a question of {used - n} tokens and "
                f"its answer of {n}; give at least {QUESTION_TOKENS[1] + SYNTHETIC[self.kind][1]}"
            )
        return turns

    def _real(self, i: int, turns: Sequence[Turn]) -> list[Asked]:
        """As many turns as fit; where even the first doesn't, what is said and its answer share the room."""
        rng = random.Random(f"{self.seed}/{i}")
        asked: list[Asked] = []
        limit, roles = self.max_context_tokens, self.kind != "agent"
        frame = TURN_TOKENS if roles else 1
        used = self.count_tokens(self.system) + TURN_TOKENS if self.system else 0
        for turn, (said, answer) in enumerate(turns):
            most = self.max_tokens
            n = most if answer is None or self.outputs == "free" else min(most, self.count_tokens(answer))
            if limit is not None and used + frame + self.count_tokens(said) + n > limit:
                if turn:
                    break
                most = output_tokens(most, limit, used + frame, 2)
                n = min(n, most)
                said = shortened(said, limit - used - frame - n, self.count_tokens)
            used += frame + self.count_tokens(said) + (n if roles else 0)
            told = answer or (self._filler(n) if self.outputs == "recorded" else None)
            asked.append(Asked(said, told, most, self._thought(rng, turn)))
        return asked

    def _filler(self, n_tokens: int) -> str:
        """Text of that many tokens, or one or two fewer."""
        long = FILLER * (1 + 4 * n_tokens // max(1, self.count_tokens(FILLER)))
        low, high = 1, len(long)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count_tokens(" " + long[:middle]) <= n_tokens else (low, middle - 1)
        return " " + long[:low] if n_tokens > 1 else CHARACTERS[0]

    def _thought(self, rng: random.Random, turn: int) -> float:
        """Seconds before a turn: log-normal with mean `think_s` and variation 1; none before the first."""
        return lognormal(rng, self.think_s) if turn and self.think_s else 0.0

    def _job(self, name: str, program: Program, turns: Sequence[Asked], namespace: str = "") -> Job:
        args: dict[str, Any] = {"turns": turns}
        if program is conversation:
            args["system"] = self.system
        return Job(program=program, args=args, name=name, conversation=name, namespace=namespace, outputs=self.outputs)
