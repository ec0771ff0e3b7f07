"""HellaSwag as a workload: which items, how many examples, how many right."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Score, Workload
from workloads.data import DataError
from workloads.hellaswag.data import Item, load_items
from workloads.hellaswag.program import examples_text, few_shot_hellaswag, question_text
from workloads.hellaswag.sample import warmup_items


class HellaSwag(Workload):
    """The first `n_shots` items are the examples, the `n_questions` after them the questions (null: all).

    `paper_compat` starts the questions at the first item, as the paper's script did: the first twenty then stand among
    their own examples, answer and all.
    """

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_shots: int = 20,
        n_questions: int | None = 200,
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        for name, value, least in (("n_shots", n_shots, 0), ("n_questions", n_questions, 1)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name}={value!r} is not allowed: it must be {least} or more")
        self.data_dir = data_dir
        self.n_shots = n_shots
        self.n_questions = n_questions
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []
        self._right: dict[str, str] = {}

    def load(self) -> None:
        self.data, items = load_items(self.data_dir)
        first = 0 if self.paper_compat else self.n_shots
        chosen = items[first:] if self.n_questions is None else items[first : first + self.n_questions]
        if len(items) < self.n_shots or not chosen:
            raise DataError(f"n_shots={self.n_shots} leaves no question of {len(items)} items; give fewer")
        examples = examples_text(items[: self.n_shots])
        self._jobs = [_job(f"hellaswag/{first + i}", examples, item) for i, item in enumerate(chosen)]
        self._right = {job.name: item.endings[item.label] for job, item in zip(self._jobs, chosen)}

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Items of our own, with another beginning and in a namespace of their own: they warm no prompt of `jobs`."""
        shots, items = warmup_items()
        examples = "Warm-up: " + examples_text([Item(*shot) for shot in shots])
        return [_job(f"warmup/{i}", examples, Item(*item), "warmup") for i, item in enumerate(items)]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the items whose right ending was selected; a failed one counts as wrong."""
        if not finished:
            return None
        right = sum(run.status == "done" and run.state["answer"] == self._right[run.name] for run in finished)
        return Score("accuracy", right / len(finished), len(finished))


def _job(name: str, examples: str, item: Item, namespace: str = "") -> Job:
    args = {"examples": examples, "question": question_text(item), "choices": item.endings}
    return Job(program=few_shot_hellaswag, args=args, name=name, namespace=namespace)
