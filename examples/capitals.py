"""A workload of your own: one question a country, after examples that all of them share."""

from collections.abc import Sequence

import lang
from workloads.base import Job, Score, Workload

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Cuba": "Havana"}


@lang.function
def capital(s: lang.ProgramState, examples: str, country: str) -> None:
    s += examples + f"Q: What is the capital of {country}?\nA:"
    s += lang.gen("answer", max_tokens=4, stop="\n", temperature=0)


class Capitals(Workload):
    def __init__(self, *, shots: int = 2) -> None:
        self.shots = shots

    def jobs(self) -> list[Job]:
        known = list(CAPITALS.items())[: self.shots]
        examples = "".join(f"Q: What is the capital of {country}?\nA: {city}\n" for country, city in known)
        asked = list(CAPITALS)[self.shots :]
        return [Job(program=capital, args={"examples": examples, "country": c}, name=c) for c in asked]

    def score(self, finished: Sequence[lang.ProgramRun]) -> Score:
        right = sum(not run.error and run.state["answer"].strip() == CAPITALS[run.name] for run in finished)
        return Score("accuracy", right / len(finished), len(finished))
