"""Search over passages: by words and by meaning."""

from __future__ import annotations

import pytest

from workloads import retrieval
from workloads.data import DataError
from workloads.retrieval import KINDS, make_retriever

PASSAGES = [
    "The Danube rises in Germany and flows to the Black Sea.",
    "A violin has four strings and is played with a bow.",
    "Bread is made of flour, water and yeast.",
    "The cello is a large instrument with four strings.",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("query", "best"),
    [("Where does the Danube flow?", 0), ("flour and yeast", 2), ("an instrument with strings played with a bow", 1)],
)
def test_the_passage_that_fits_best_comes_first(kind: str, query: str, best: int) -> None:
    assert make_retriever(kind, PASSAGES).search(query, 2)[0] == best


@pytest.mark.parametrize("kind", KINDS)
def test_each_passage_is_found_once_and_no_more_than_there_are(kind: str) -> None:
    retriever = make_retriever(kind, PASSAGES)
    found = retriever.search("four strings", 3)
    assert len(found) == len(set(found)) == 3
    assert {1, 3} <= set(found)
    assert sorted(retriever.search("four strings", 10)) == [0, 1, 2, 3]
    assert retriever.search("four strings", 3) == found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("query", ["", "the of and", "xyzzy"])
def test_a_query_that_says_nothing_still_gives_passages(kind: str, query: str) -> None:
    assert len(make_retriever(kind, PASSAGES).search(query, 2)) == 2


def test_passages_with_nothing_but_stop_words_can_be_searched() -> None:
    assert len(make_retriever("bm25", ["the of", "violin"]).search("violin", 2)) == 2
    assert make_retriever("bm25", ["the of", "violin"]).search("violin", 2)[0] == 1


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="retriever='google' is not allowed: it must be one of bm25, embeddings"):
        make_retriever("google", PASSAGES)


@pytest.mark.parametrize(("kind", "package"), [("bm25", "bm25s"), ("embeddings", "wordllama")])
def test_a_library_that_is_missing_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(retrieval, "import_module", none)
    with pytest.raises(DataError, match=rf"{package} isn't installed: pip install 'radixlab\[rag\]'"):
        make_retriever(kind, PASSAGES)
