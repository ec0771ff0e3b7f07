"""A document's segments encoded apart, each behind the same beginning, then questions on top of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.long_doc_qa.data import Question

HEAD = "Below are parts of one document. Answer the questions behind them from the document alone.\n"


@lang.function
def long_doc_qa(
    s: lang.ProgramState, parts: Sequence[str], asked: Sequence[Question], max_tokens: int, concatenated: bool
) -> list[str]:
    """concatenated: parts don't see one another, so that their KV is computed side by side, and once for all documents
    that hold them; else one behind the other, as usual."""
    s += HEAD
    if concatenated:
        branches = s.fork(len(parts))
        for i, (branch, part) in enumerate(zip(branches, parts)):
            branch += f"\nPart {i + 1}:\n{part}\n"
        branches.join("concate_and_append")
    else:
        for i, part in enumerate(parts):
            s += f"\nPart {i + 1}:\n{part}\n"
    answers = s.fork(len(asked))
    for answer, question in zip(answers, asked):
        answer += f"\nHow does this sentence of the document go on? {question.text}"
        answer += lang.gen("answer", max_tokens=max_tokens, temperature=0, stop="\n", recorded=question.answer)
    answers.join()
    return [str(text) for text in s["answer"]]
