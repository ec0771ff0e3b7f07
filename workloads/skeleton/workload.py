"""Skeleton of thought as a workload."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import jsonl_rows
from workloads.lengths import drawn_length
from workloads.skeleton.program import skeleton
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
    rows = jsonl_rows(str(found.paths[TOPICS]), found.contents[TOPICS], {"topic": str})
    return found.source, tuple(row["topic"] for _, row in rows)


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
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_topics=(n_topics, 1), n_tips=(n_tips, 1), tip_tokens=(tip_tokens, 1))
        need_at_least(detail_tokens=(detail_tokens, 1))
        self.data_dir = data_dir
        self.n_topics = n_topics
        self.n_tips = n_tips
        self.tip_tokens = tip_tokens
        self.detail_tokens = detail_tokens
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
        tips = [drawn_text(rng, self.tip_tokens / 2, self.tip_tokens) for _ in range(self.n_tips)]
        details = [drawn_text(rng, self.detail_tokens / 2, self.detail_tokens) for _ in range(self.n_tips)]
        args: dict[str, Any] = {
            "topic": topic,
            "n_tips": self.n_tips,
            "tip_tokens": self.tip_tokens,
            "detail_tokens": self.detail_tokens,
            "tips": tips,
            "details": details,
        }
        return Job(program=skeleton, args=args, name=name, namespace=namespace, outputs=self.outputs)


def drawn_text(rng: random.Random, mean: float, most: int) -> str:
    """A made-up output: a log-normal number of words (mean as given, variation 0.5), which a tokenizer of whole words
    takes for as many tokens, and others for more."""
    return "".join(f" {word}" for word in rng.choices(WORDS, k=drawn_length(rng, mean, most)))
