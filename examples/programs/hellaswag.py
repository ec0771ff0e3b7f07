"""HellaSwag, few-shot: which of four endings is the likeliest? The prompt is computed once, each ending after it.

The endings are an argument, so that one graph serves all questions: that there are four of them is all it needs to
know.
"""

from __future__ import annotations

from collections.abc import Sequence

import lang
from examples.programs.example import Example
from workloads.hellaswag.data import Item
from workloads.hellaswag.program import examples_text, few_shot_hellaswag, question_text
from workloads.hellaswag.sample import sample_items

N_SHOTS = 4


@lang.function
def hellaswag(s: lang.ProgramState, examples: str, question: str, endings: Sequence[str]) -> str:
    few_shot_hellaswag(s, examples, question, [endings[i] for i in range(4)])
    return s["answer"]


ITEMS = [Item(*row) for row in sample_items()]
EXAMPLE = Example(
    hellaswag,
    items=[
        {
            "examples": examples_text(ITEMS[:N_SHOTS]),
            "question": question_text(item),
            "endings": list(item.endings),
        }
        for item in ITEMS[N_SHOTS : N_SHOTS + 6]
    ],
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
