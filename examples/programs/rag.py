"""Answers from retrieved passages, in two hops: what the first passages tell makes the query for the second.

The retriever is a Python function, applied when its query is there: a small library of our own ranked by common words.
The last step is a chain of thought: reasons first, then a short answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import lang
from examples.programs.example import Example

N_HOPS, N_PASSAGES = 2, 3
LIBRARY = (
    "The Danube rises in Germany and flows through Vienna, Budapest and Belgrade.",
    "Vienna is the capital of Austria. Mozart and Beethoven lived there.",
    "Mozart was born in Salzburg in 1756 and wrote over 600 works.",
    "Salzburg lies on the Salzach, near the border of Germany. Salt made it rich.",
    "Belgrade is the capital of Serbia and lies where the Sava meets the Danube.",
    "Beethoven was born in Bonn in 1770. He wrote nine symphonies.",
    "Bonn lies on the Rhine and was the capital of West Germany.",
    "The Rhine rises in Switzerland and ends in the North Sea.",
)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@lang.pure
def retrieve(*queries: str) -> list[str]:
    """The passages that have most words, and pairs of words, in common with the queries; the first of equals first."""
    asked = words(" ".join(queries))
    pairs = {pair for query in queries for pair in pairwise(query.lower().split())}

    def score(passage: str) -> int:
        return len(asked & words(passage)) + sum(" ".join(pair) in passage.lower() for pair in pairs)

    return sorted(LIBRARY, key=score, reverse=True)[:N_PASSAGES]


@lang.pure
def numbered(passages: Sequence[str]) -> str:
    return "".join(f"[{i + 1}] {passage}\n" for i, passage in enumerate(passages))


@lang.function
def rag(s: lang.ProgramState, question: str) -> str:
    s += "Answer questions with short factual answers.\n\n"
    query = question
    for _ in range(N_HOPS):
        s += "Passages:\n" + lang.apply(numbered, lang.apply(retrieve, question, query))
        s += "What else should be looked for? " + lang.gen("query", max_tokens=12, stop="\n") + "\n"
        query = s["query"]
    s += f"Question: {question}\nReasoning: " + lang.gen("reasoning", max_tokens=32, stop="\n")
    s += "\nAnswer: " + lang.gen("answer", max_tokens=8, stop="\n")
    return s["answer"]


QUESTIONS = [
    "Where was the composer born who wrote over 600 works?",
    "Which river flows through the town where Beethoven was born?",
    "Which capital lies where two rivers meet?",
    "What made the town rich where Mozart was born?",
    "Where does the river end on which Bonn lies?",
    "Of which country is Vienna the capital?",
]
EXAMPLE = Example(rag, items=[{"question": question} for question in QUESTIONS], functions=[retrieve, numbered])


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
