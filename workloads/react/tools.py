"""The agent's tools over a fixed library of pages: search, look up, finish."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from workloads.react.data import Page
from workloads.retrieval import Retriever, make_retriever

_ACTION = re.compile(r"(Search|Lookup|Finish)\[(.*?)\]\s*(?:\n|$)", re.IGNORECASE | re.DOTALL)
SENTENCES = 5
"""Of a page that a search shows."""


class Action(NamedTuple):
    name: str
    """search, lookup or finish."""
    argument: str


def parsed_action(text: str) -> Action | None:
    """The first action in what the model wrote; None when there is none."""
    found = _ACTION.search(text)
    return None if found is None else Action(found[1].lower(), found[2].strip())


class Library:
    """Pages that are found by title, or by what is in them."""

    def __init__(self, pages: Sequence[Page], retriever: str = "bm25") -> None:
        self._pages = {page.title.casefold(): page for page in pages}
        self._titles = [page.title for page in pages]
        self._index: Retriever = make_retriever(retriever, [f"{p.title}. {' '.join(p.sentences)}" for p in pages])

    def page(self, title: str) -> Page | None:
        return self._pages.get(title.casefold())

    def similar(self, query: str) -> list[str]:
        """Five titles."""
        return [self._titles[i] for i in self._index.search(query, 5)]


class Desk:
    """One agent's visit to the library: it remembers the page that lies open."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._open: Page | None = None
        self._word = ""
        self._seen = 0

    def act(self, action: Action | None) -> str:
        """What the agent sees then. Anything that is no search or lookup is answered with what is allowed."""
        if action is None:
            return "Invalid action: say Search[title], Lookup[word] or Finish[answer]."
        if action.name == "search":
            self._open, self._word = self._library.page(action.argument), ""
            if self._open is None:
                similar = ", ".join(self._library.similar(action.argument))
                return f"Could not find {action.argument}. Similar: {similar}."
            return " ".join(self._open.sentences[:SENTENCES])
        return self._look_up(action.argument)

    def _look_up(self, word: str) -> str:
        """The next sentence of the open page with the word."""
        if self._open is None:
            return "No page is open: search one first."
        if word != self._word:
            self._word, self._seen = word, 0
        found = [sentence for sentence in self._open.sentences if word.casefold() in sentence.casefold()]
        if self._seen >= len(found):
            return "No more results."
        self._seen += 1
        return f"(Result {self._seen} / {len(found)}) {found[self._seen - 1]}"


def normalised(answer: str) -> str:
    """As HotpotQA's evaluation compares answers: lower case, no articles, no punctuation, single blanks."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
