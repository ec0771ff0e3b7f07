"""Skeleton of thought as a workload."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import DataError, jsonl_rows
from workloads.lengths import drawn_length, reread
from workloads.room import output_tokens
from workloads.skeleton.program import detail_prompt, skeleton, tips_prompt
from workloads.sources import Files, find_files, need_at_least, sample_source

TOPICS = "tip_suggestion_topics.jsonl"
SAMPLE = (
    *("keeping bees", "learning to whistle", "packing a small bag", "drawing hands", "growing beans on a balcony"),
    *("repairing a chair", "walking in the mountains", "cooking for one", "writing letters", "teaching a dog to wait"),
)
WORDS = (
    *("begin", "small", "and", "keep", "a", "list", "of", "what", "you", "did", "then", "ask", "someone", "who"),
    *("knows", "to", "look", "at", "it", "with", "you", "once", "every", "week", "before", "going", "on"),
)


def load_topics(data_dir: str | None) -> tuple[DataSource, tuple[str, ...]]:
    """Raises DataError."""
    found = find_files("sglang_bench_misc", data_dir, (TOPICS,), also={TOPICS: ("topic.jsonl",)})
    if not isinstance(found, Files):
        return sample_source("the topics of tip_suggestion", SAMPLE, found.why), SAMPLE
    name = str(found.paths[TOPICS])
    topics = tuple(row["topic"] for _, row in jsonl_rows(name, found.contents[TOPICS], {"topic": str}))
    if not topics:
        raise DataError(f"{name}: no topics in it; get the file again")
    return found.source, topics


class Skeleton(Workload):
    """`n_tips` tips in one prompt, each then written out by a call of its own, side by side."""

    served_outputs: Sequence[Outputs] = ("fixed", "recorded", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_topics: int | None = 50,
        n_tips: int = 5,
        tip_tokens: int = 24,
        detail_tokens: int = 128,
        max_context_tokens: int | None = None,
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_topics=(n_topics, 1), n_tips=(n_tips, 1), tip_tokens=(tip_tokens, 1))
        need_at_least(detail_tokens=(detail_tokens, 1), max_context_tokens=(max_context_tokens, 1))
        self.data_dir = data_dir
        self.n_topics = n_topics
        self.n_tips = n_tips
        self.tip_tokens = tip_tokens
        self.detail_tokens = detail_tokens
        self.max_context_tokens = max_context_tokens
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []

    def load(self) -> None:
        self.data, topics = load_topics(self.data_dir)
        self._jobs = [self._job(f"skeleton/{i}", topic) for i, topic in enumerate(topics[: self.n_topics])]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """In a namespace of its own."""
        return [self._job("warmup/0", "warming up", "warmup")]

    def _job(self, name: str, topic: str, namespace: str = "") -> Job:
        rng = random.Random(f"{self.seed}/{name}")
        tip_tokens, detail_tokens = self._limits(topic)
        room = None if self.max_context_tokens is None else tip_tokens
        tips = [drawn_text(rng, tip_tokens / 2, tip_tokens) for _ in range(self.n_tips)]
        details = [drawn_text(rng, detail_tokens / 2, detail_tokens) for _ in range(self.n_tips)]
        args: dict[str, Any] = {
            "topic": topic,
            "n_tips": self.n_tips,
            "tip_tokens": tip_tokens,
            "detail_tokens": detail_tokens,
            "tips": tips,
            "details": details,
            "cut": lambda said: reread(said, room, self.count_tokens),
        }
        return Job(program=skeleton, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _limits(self, topic: str) -> tuple[int, int]:
        """Most tokens of a tip and of a detail, so that the prompts of both and their outputs fit. A tip that is read
        again between other words may take a token more at each end."""
        limit, frame = self.max_context_tokens, "Tip 10:.\n" * self.n_tips
        written = self.count_tokens(tips_prompt(topic, self.n_tips) + frame) + 2 * self.n_tips
        tip_tokens = output_tokens(self.tip_tokens, limit, written, self.n_tips)
        told = self.count_tokens(detail_prompt(topic, "")) + 2 + tip_tokens
        return tip_tokens, output_tokens(self.detail_tokens, limit, told)


def drawn_text(rng: random.Random, mean: float, most: int) -> str:
    """A made-up output: a log-normal number of words (mean as given, variation 0.5), which a tokenizer of whole words
    takes for as many tokens, and others for more."""
    return "".join(f" {word}" for word in rng.choices(WORDS, k=drawn_length(rng, mean, most)))
