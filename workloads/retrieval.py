"""Search over a corpus of passages, by words (BM25) or by meaning (sentence embeddings)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from workloads.data import DataError

KINDS = ("bm25", "embeddings")


class Retriever(Protocol):
    def search(self, query: str, k: int) -> list[int]:
        """Indices of the k passages that fit best, best first; fewer where there are fewer passages."""


def make_retriever(kind: str, passages: Sequence[str]) -> Retriever:
    """Raises DataError when the library isn't installed, ValueError for a kind that isn't there."""
    if kind not in KINDS:
        raise ValueError(f"retriever={kind!r} is not allowed: it must be one of {', '.join(KINDS)}")
    return BM25(passages) if kind == "bm25" else Embeddings(passages)


class BM25:
    """Okapi BM25 by the library bm25s, English stop words left out."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._library = _library("bm25s")
        self._n = len(passages)
        self._index = self._library.BM25()
        self._index.index(self._words(passages), show_progress=False)

    def search(self, query: str, k: int) -> list[int]:
        found, _ = self._index.retrieve(self._words([query]), k=min(k, self._n), show_progress=False)
        return [int(i) for i in found[0]]

    def _words(self, texts: Sequence[str]) -> Any:
        return self._library.tokenize(list(texts), stopwords="en", show_progress=False)


class Embeddings:
    """Cosine similarity of WordLlama's sentence embeddings (256 numbers), whose weights lie in its package."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._model = _wordllama()
        self._passages = self._unit(passages)

    def search(self, query: str, k: int) -> list[int]:
        scores = self._passages @ self._unit([query])[0]
        return [int(i) for i in np.argsort(-scores, kind="stable")[:k]]

    def _unit(self, texts: Sequence[str]) -> Any:
        vectors = np.asarray(self._model.embed(list(texts)), dtype=np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _wordllama() -> Any:
    """Its own loader looks for the tokenizer in a folder that its package doesn't have, and then on the network."""
    package = Path(str(_library("wordllama").__file__)).parent
    inference = import_module("wordllama.inference")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return inference.WordLlamaInference(weights, tokenizer)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(
            f"{name} isn't installed: pip install 'radixlab[rag]' (or {name}), or choose another retriever"
        ) from error
