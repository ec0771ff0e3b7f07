"""Prompts for the engine benchmarks: real MMLU where its data is, else token ids of the same shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.request import Tokens

SUBJECTS, QUESTIONS = 3, 40
FIRST_TOKEN = 10
"""Below are special tokens."""


def random_prompts(n: int, tokens: int, vocabulary: int, seed: int) -> list[Tokens]:
    """`n` prompts that share nothing."""
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST_TOKEN, vocabulary, tokens) for _ in range(n)]


def branches(n: int, shared: int, own: int, vocabulary: int, seed: int) -> list[Tokens]:
    """`n` prompts of one prefix of `shared` tokens, each with `own` more."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(FIRST_TOKEN, vocabulary, shared)
    return [np.concatenate([prefix, rng.integers(FIRST_TOKEN, vocabulary, own)]) for _ in range(n)]


def mmlu_like(
    vocabulary: int, seed: int, *, subjects: int = SUBJECTS, questions: int = QUESTIONS, scale: float = 1.0
) -> list[Tokens]:
    """Prompts as long as MMLU's: a subject's five examples (300 to 600 tokens), then a question of 50 to 130.

    scale: of all lengths.
    """
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(subjects):
        examples = rng.integers(FIRST_TOKEN, vocabulary, max(2, int(scale * rng.integers(300, 600))))
        for _ in range(questions):
            question = rng.integers(FIRST_TOKEN, vocabulary, max(2, int(scale * rng.integers(50, 130))))
            prompts.append(np.concatenate([examples, question]))
    return prompts


def mmlu(vocabulary: int) -> tuple[list[Tokens], str]:
    """120 prompts, and in words what they are."""
    real = _real_mmlu(vocabulary)
    if real is not None:
        return real, f"{len(real)} real MMLU prompts, {sum(map(len, real)):,} tokens"
    made = mmlu_like(vocabulary, seed=0)
    return made, f"{len(made)} made-up prompts of MMLU's shape, {sum(map(len, made)):,} tokens"


def _real_mmlu(vocabulary: int) -> list[Tokens] | None:
    try:
        from experiments.bench.radix_prompts import data_folder, mmlu_prompts
    except ImportError:
        return None
    folder = data_folder(None)
    if folder is None or not (folder / "tokenizers" / "tinyllama_tokenizer.json").is_file():
        return None
    prompts = mmlu_prompts(folder)
    return prompts if max(int(prompt.max()) for prompt in prompts) < vocabulary else None


def total(prompts: Sequence[Tokens]) -> int:
    return sum(map(len, prompts))
