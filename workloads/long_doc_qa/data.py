"""Long documents: Wikipedia's pages of cities, chapters of a novel, WikiText's articles, or our sample."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, as_text, jsonl_rows
from workloads.long_doc_qa.sample import sample_documents
from workloads.sources import Files, find_files, sample_source


class Document(NamedTuple):
    title: str
    text: str
    """Paragraphs, a line each."""


class Documents(NamedTuple):
    source: DataSource
    documents: tuple[Document, ...]


class Corpus(NamedTuple):
    folder: str
    file: str
    read: Callable[[str, bytes], list[Document]]


def load_documents(data_dir: str | None, corpus: str) -> Documents:
    """corpus: one of CORPORA. Raises DataError."""
    folder, file, read = CORPORA[corpus]
    found = find_files(folder, data_dir, (file,))
    if not isinstance(found, Files):
        made = sample_documents()
        source = sample_source(f"the corpus {corpus}", made, found.why)
        return Documents(source, tuple(Document(*one) for one in made))
    name = str(found.paths[file])
    documents = tuple(one for one in read(name, found.contents[file]) if one.text)
    if not documents:
        raise DataError(f"{name}: no document in it; get the file again")
    return Documents(found.source, documents)


def paragraphs(text: str) -> str:
    """Lines that aren't empty, without the blanks around them."""
    return "\n".join(filter(None, (line.strip() for line in text.splitlines())))


def _pages(name: str, content: bytes) -> list[Document]:
    rows = jsonl_rows(name, content, {"title": str, "text": str})
    return [Document(row["title"], paragraphs(row["text"])) for _, row in rows]


def _chapters(name: str, content: bytes) -> list[Document]:
    """Of the novel, whose chapters have numbers in brackets as headings."""
    _, *parts = re.split(r"^### \[ (\d+) \]$", as_text(name, content), flags=re.MULTILINE)
    numbers, texts = parts[::2], parts[1::2]
    told = [re.sub(r"^## .*$", "", text, flags=re.MULTILINE) for text in texts]
    return [Document(f"Ulysses, chapter {number}", paragraphs(text)) for number, text in zip(numbers, told)]


def _articles(name: str, content: bytes) -> list[Document]:
    """Of WikiText: a title stands between single equals signs, headings of sections between more of them."""
    _, *parts = re.split(r"^ = ([^=\n]+) = *$", as_text(name, content), flags=re.MULTILINE)
    return [Document(title.strip(), paragraphs(text)) for title, text in zip(parts[::2], parts[1::2])]


CORPORA = {
    "wikipedia_cities": Corpus("wikipedia_cities", "cities.jsonl", _pages),
    "ulysses": Corpus("text_corpora", "ulysses.md", _chapters),
    "wikitext2": Corpus("text_corpora", "wikitext2_test.txt", _articles),
}
