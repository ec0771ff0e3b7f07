"""Tree of thought: plans are proposed in branches, each is carried out twice, every result is rated, and then a vote.

Two votes: the model's (a select among the plans) and Python's, over all results at once: a pure function, applied as
soon as the last of them is there. Branches of branches join into lists of lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lang
from examples.programs.example import Example

N_PLANS, N_SOLUTIONS = 3, 2
PLAN_NUMBERS = [str(i + 1) for i in range(N_PLANS)]


@lang.pure
def majority(answers: Sequence[Sequence[str]], ratings: Sequence[Sequence[str]]) -> str:
    """The answer with the highest ratings in all; the first of equals."""
    votes: Counter[str] = Counter()
    for of_plan, rated in zip(answers, ratings):
        for answer, rating in zip(of_plan, rated):
            votes[answer] += int(rating)
    return votes.most_common(1)[0][0]


@lang.pure
def best_of(answers: Sequence[Sequence[str]], ratings: Sequence[Sequence[str]], plan: str) -> str:
    """The plan's answer with the highest rating."""
    rated = list(zip(ratings[int(plan) - 1], answers[int(plan) - 1]))
    return max(rated, key=lambda one: int(one[0]))[1]


@lang.function
def tree_of_thought(s: lang.ProgramState, question: str) -> dict[str, str]:
    s += f"Question: {question}\n"
    plans = s.fork(N_PLANS)
    for i, plan in enumerate(plans):
        plan += f"Plan {i + 1}: " + lang.gen("plan", max_tokens=16, stop="\n")
        solutions = plan.fork(N_SOLUTIONS)
        solutions += lambda j: f"\nSolution {j + 1}: " + lang.gen("work", max_tokens=24, stop="\n")
        solutions += "\nThe answer is " + lang.gen("answer", dtype=int, max_tokens=4)
        solutions += "\nHow sure is that, from 1 to 3? " + lang.select("rating", ["1", "2", "3"])
        solutions.join()
    plans.join()
    for i in range(N_PLANS):
        s += f"Plan {i + 1}: {s['plan'][i]}\nIt gave {s['answer'][i][0]} and {s['answer'][i][1]}.\n"
    s += "The best plan is number " + lang.select("best", PLAN_NUMBERS)
    s["majority"] = lang.apply(majority, s["answer"], s["rating"])
    s["voted"] = lang.apply(best_of, s["answer"], s["rating"], s["best"])
    s += f".\nBy majority the answer is {s['majority']}, by that plan {s['voted']}."
    return {"majority": s["majority"], "voted": s["voted"]}


QUESTIONS = [
    "A box holds 6 eggs. How many eggs are in 7 boxes?",
    "Ann has 12 apples and gives 5 to Bob. How many has she left?",
    "A train goes 80 km in an hour. How far does it go in 3 hours?",
    "Three friends share 27 nuts. How many does each get?",
    "A book has 90 pages. Tom reads 15 a day. How many days does he need?",
    "A pen costs 3 coins and a book 8. What do 2 pens and a book cost?",
]
EXAMPLE = Example(
    tree_of_thought, items=[{"question": question} for question in QUESTIONS], functions=[majority, best_of]
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
