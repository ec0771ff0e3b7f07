"""The judge as a workload."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import DataError, as_text
from workloads.judge.program import DIMENSIONS, MARK_TOKENS, article_prompt, dimension_prompt, judge, merge_prompt
from workloads.lengths import reread, shortened
from workloads.room import output_tokens
from workloads.skeleton.workload import drawn_text
from workloads.sources import Files, find_files, need_at_least, sample_source

ARTICLES = "llm_judge_articles.jsonl"
_SUBJECTS = ("bridges", "bread", "rain", "clocks", "maps", "salt", "glass", "wool")


def sample_articles() -> list[str]:
    """Articles of our own, of about a thousand characters."""
    rng = random.Random("judge sample")
    return [_article(rng, subject) for subject in _SUBJECTS]


def load_articles(data_dir: str | None) -> tuple[DataSource, tuple[str, ...]]:
    """Raises DataError."""
    found = find_files("sglang_bench_misc", data_dir, (ARTICLES,), also={ARTICLES: ("articles.jsonl",)})
    if not isinstance(found, Files):
        articles = tuple(sample_articles())
        return sample_source("the articles of llm_judge", articles, found.why), articles
    name = str(found.paths[ARTICLES])
    read = []
    for number, line in enumerate(as_text(name, found.contents[ARTICLES]).split("\n"), 1):
        if not line.strip():
            continue
        try:
            article = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {number}: not JSON ({error.msg}); get the file again") from error
        if not isinstance(article, str):
            raise DataError(f"{name}, line {number}: a JSON string is needed, not {type(article).__name__}")
        read.append(article)
    if not read:
        raise DataError(f"{name}: no articles in it; get the file again")
    return found.source, tuple(read)


class Judge(Workload):
    """Each article judged in `n_dimensions` branches, then marked."""

    served_outputs: Sequence[Outputs] = ("fixed", "recorded", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_articles: int | None = 25,
        n_dimensions: int = 6,
        max_tokens: int = 256,
        max_article_tokens: int | None = None,
        max_context_tokens: int | None = None,
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_articles=(n_articles, 1), n_dimensions=(n_dimensions, 1), max_tokens=(max_tokens, 1))
        need_at_least(max_article_tokens=(max_article_tokens, 1), max_context_tokens=(max_context_tokens, 1))
        if n_dimensions > len(DIMENSIONS):
            raise ValueError(f"n_dimensions={n_dimensions} is not allowed: there are {', '.join(DIMENSIONS)}")
        self.data_dir = data_dir
        self.n_articles = n_articles
        self.dimensions = list(DIMENSIONS)[:n_dimensions]
        self.max_tokens = max_tokens
        self.max_article_tokens = max_article_tokens
        self.max_context_tokens = max_context_tokens
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []

    def load(self) -> None:
        self.data, articles = load_articles(self.data_dir)
        self._jobs = [self._job(f"judge/{i}", article) for i, article in enumerate(articles[: self.n_articles])]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """An article of our own, in a namespace of its own."""
        return [self._job("warmup/0", _article(random.Random("judge warm-up"), "warm-ups"), "warmup")]

    def _job(self, name: str, article: str, namespace: str = "") -> Job:
        rng = random.Random(f"{self.seed}/{name}")
        article, max_tokens = self._fitted(article)
        room = None if self.max_context_tokens is None else max_tokens
        judgments = [drawn_text(rng, max_tokens / 3, max_tokens) for _ in self.dimensions]
        args = {
            "article": article,
            "dimensions": self.dimensions,
            "max_tokens": max_tokens,
            "judgments": judgments,
            "mark": f" {rng.randint(1, 9)}",
            "cut": lambda said: reread(said, room, self.count_tokens),
        }
        return Job(program=judge, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _fitted(self, article: str) -> tuple[str, int]:
        """The article and the most tokens of a judgment, so that the merge with all judgments and the mark fits. Where
        the article leaves too little, it is cut: judgments get half of the room at most."""
        if self.max_article_tokens is not None:
            article = shortened(article, self.max_article_tokens, self.count_tokens)
        limit = self.max_context_tokens
        if limit is None:
            return article, self.max_tokens
        n, none = len(self.dimensions), [""] * len(self.dimensions)
        # a judgment that is read again between other words may take a token more at each end
        frame = self.count_tokens(article_prompt("") + merge_prompt(self.dimensions, none)) + 2 * n + MARK_TOKENS
        question = max(self.count_tokens(dimension_prompt(dimension)) for dimension in self.dimensions)
        frame = max(frame, self.count_tokens(article_prompt("")) + question)
        half = output_tokens(self.max_tokens * n, limit, frame, 2)
        article = shortened(article, limit - frame - half, self.count_tokens)
        return article, output_tokens(self.max_tokens, limit, frame + self.count_tokens(article), n)


def _article(rng: random.Random, subject: str) -> str:
    openings = ("Few things are as old as", "Everybody knows", "There was a time before", "Nobody thinks twice about")
    claims = (
        "they were made by hand for centuries",
        "the first ones failed more often than they worked",
        "what they cost has fallen by half within a lifetime",
        "their makers kept the best ways to themselves",
        "a small change in the middle of the last century altered all of it",
        "we would notice them only if they were gone",
    )
    paragraphs = [f"{rng.choice(openings)} {subject}. As far as we know, {claim}." for claim in rng.sample(claims, 5)]
    return f"On {subject}\n\n" + "\n\n".join(f"{p} It took {rng.randint(2, 90)} years to see why." for p in paragraphs)
