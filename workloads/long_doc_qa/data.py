"""Long documents, from files or our sample, cut into segments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from workloads.base import DataSource
from workloads.data import jsonl_rows
from workloads.json_decode.sample import sample_pages
from workloads.sources import Files, find_files, sample_source

CITIES = "cities.jsonl"
_SENTENCE = re.compile(r"[A-Z][^.!?\n]{30,200}\.")


class Document(NamedTuple):
    title: str
    text: str


class Question(NamedTuple):
    """Asks how a sentence of the document goes on."""

    text: str
    answer: str


def load_documents(data_dir: str | None) -> tuple[DataSource, list[Document]]:
    """Wikipedia's pages of cities, each of 50,000 to 100,000 characters. Raises DataError."""
    found = find_files("wikipedia_cities", data_dir, (CITIES,))
    if not isinstance(found, Files):
        pages = [Document(page.split(" ", 1)[0], page) for page in sample_pages()]
        return sample_source("Wikipedia's pages of cities", pages, found.why), pages
    rows = jsonl_rows(str(found.paths[CITIES]), found.contents[CITIES], {"text": str, "title": str})
    return found.source, [Document(row["title"], row["text"]) for _, row in rows]


def segments(text: str, n: int, tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The first `n` stretches of about so many tokens each, cut between words; fewer of a short text."""
    words, found = text.split(" "), []
    per_word = max(0.2, count_tokens(text[:4000]) / max(1, len(text[:4000].split(" "))))
    size = max(1, round(tokens / per_word))
    for at in range(0, min(len(words), n * size), size):
        found.append(" ".join(words[at : at + size]))
    return found


def questions(parts: list[str], n: int) -> list[Question]:
    """`n` questions at most, spread over the segments: each gives half a sentence and asks for the rest."""
    sentences = [sentence for part in parts for sentence in _SENTENCE.findall(part)]
    chosen = sentences[:: max(1, len(sentences) // n)][:n]
    found = []
    for sentence in chosen:
        words = sentence.split(" ")
        half = len(words) // 2
        found.append(Question(" ".join(words[:half]), " " + " ".join(words[half:])))
    return found
