"""Prompts for the radix benchmark: real MMLU, and synthetic ones that share a long prefix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.request import Tokens
from workloads.mmlu import MMLU

VOCABULARY = 32_000


def data_folder(given: str | None) -> Path | None:
    """The folder of real data: as given, or RADIXLAB_DATA, or None."""
    name = given or os.environ.get("RADIXLAB_DATA")
    return Path(name) if name else None


def mmlu_texts(data: Path) -> list[str]:
    """The first 3 subjects in alphabetical order, 40 questions each, 5-shot, cut to fit the TinyLlama vocabulary.

    Raises FileNotFoundError when `data` has no tokenizers/tinyllama_tokenizer.json.
    """
    tokenizer = _tinyllama(data)
    workload = MMLU(subjects=3, questions_per_subject=40, data_dir=str(data / "mmlu"))
    workload.count_tokens = lambda text: len(tokenizer.encode(text).ids)
    workload.load()
    return [str(job.args["examples"]) + str(job.args["question"]) for job in workload.jobs()]


def mmlu_prompts(data: Path) -> list[Tokens]:
    """`mmlu_texts` as tokens. Raises FileNotFoundError as it does."""
    tokenizer = _tinyllama(data)
    return [np.array(tokenizer.encode(text).ids, np.int64) for text in mmlu_texts(data)]


def tinyllama_file(data: Path) -> Path:
    """Raises FileNotFoundError when it isn't there."""
    file = data / "tokenizers" / "tinyllama_tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} isn't there; --data names a folder with mmlu/ and tokenizers/")
    return file


def _tinyllama(data: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tinyllama_file(data)))


def synthetic_prompts(n: int, *, shared: int = 500, own: int = 100, seed: int = 0) -> list[Tokens]:
    """`n` prompts of `shared + own` random tokens, the first `shared` the same in all."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, VOCABULARY, shared)
    return [np.concatenate([prefix, rng.integers(0, VOCABULARY, own)]) for _ in range(n)]


def reusable_tokens(prompts: Sequence[Tokens]) -> int:
    """Tokens an unbounded cache with pages of 1 finds: by brute force, each prompt against each one before it.

    A prompt's last token is always computed, so it is never found.
    """
    found = 0
    for i, prompt in enumerate(prompts):
        best = 0
        for other in prompts[:i]:
            n = min(len(prompt) - 1, len(other))
            differ = np.flatnonzero(prompt[:n] != other[:n])
            best = max(best, int(differ[0]) if len(differ) else n)
        found += best
    return found


def distinct_prefixes(prompts: Sequence[Tokens]) -> int:
    """Tokens that an unbounded cache holds in the end: distinct prefixes, by brute force."""
    return len({prompt[:n].tobytes() for prompt in prompts for n in range(1, len(prompt) + 1)})
