"""MMLU as a workload: which questions, how many examples, in what order, how many right."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Score, Workload
from workloads.data import DataError
from workloads.mmlu.data import BySubject, Question, load_questions
from workloads.mmlu.program import examples_text, few_shot_mmlu, question_text
from workloads.mmlu.sample import warmup_questions

PAPER_SHOTS: Mapping[str, int] = {"high_school_european_history": 3, "high_school_us_history": 3}
"""Examples left where five exceed 1536 tokens of gpt-3.5-turbo's vocabulary (cl100k_base): only these two subjects."""


class MMLU(Workload):
    """`subjects`: the first so many in alphabetical order, or their names. `limit`: questions in all.

    Examples are dropped, last first, until they take at most `max_shot_tokens` of the model's own tokens. With
    `paper_compat` they are dropped as in the paper's script, by gpt-3.5's, and a subject starts when the last ended.
    """

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subjects: int | Sequence[str] | None = 10,
        n_shots: int = 5,
        max_shot_tokens: int = 1536,
        questions_per_subject: int | None = None,
        limit: int | None = None,
        order: str = "by_subject",
        seed: int = 0,
        max_tokens: int = 1,
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        if order not in ("by_subject", "shuffled"):
            raise ValueError(f"order={order!r} is not allowed: it must be 'by_subject' or 'shuffled'")
        if paper_compat and order != "by_subject":
            raise ValueError("paper_compat=true runs subject by subject: leave order=by_subject")
        for name, value, least in (
            ("n_shots", n_shots, 0),
            ("max_shot_tokens", max_shot_tokens, 1),
            ("questions_per_subject", questions_per_subject, 1),
            ("limit", limit, 1),
            ("max_tokens", max_tokens, 1),
        ):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name}={value!r} is not allowed: it must be {least} or more")
        if isinstance(subjects, int) and (subjects < 1 or isinstance(subjects, bool)):
            raise ValueError(f"subjects={subjects!r} is not allowed: it must be 1 or more, or a list of names")
        self.data_dir = data_dir
        self.subjects = [subjects] if isinstance(subjects, str) else subjects
        self.n_shots = n_shots
        self.max_shot_tokens = max_shot_tokens
        self.questions_per_subject = questions_per_subject
        self.limit = limit
        self.order = order
        self.seed = seed
        self.max_tokens = max_tokens
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self.data, dev, test = load_questions(self.data_dir)
        self._jobs, self._answers = [], {}
        for stage, subject in enumerate(self._chosen(test)):
            examples = self._examples(subject, dev)
            for i, question in enumerate(test[subject][: self.questions_per_subject]):
                job = self._job(f"mmlu/{subject}/{i}", examples, question, stage if self.paper_compat else 0)
                self._jobs.append(job)
                self._answers[job.name] = question.answer
        if self.order == "shuffled":
            random.Random(self.seed).shuffle(self._jobs)
        self._jobs = self._jobs[: self.limit]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Questions of our own, with another beginning and in their own namespace: they warm no prompt of `jobs`."""
        shots, questions = warmup_questions()
        examples = "Warm-up: " + examples_text("many_subjects", [Question(*shot) for shot in shots])
        return [
            self._job(f"warmup/{i}", examples, Question(*question), namespace="warmup")
            for i, question in enumerate(questions)
        ]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions whose answer's first letter is right; a failed one counts as wrong."""
        if not finished:
            return None
        right = sum(predicted(run) == self._answers[run.name] for run in finished)
        return Score("accuracy", right / len(finished), len(finished))

    def _job(self, name: str, examples: str, question: Question, stage: int = 0, namespace: str = "") -> Job:
        args = {"examples": examples, "question": question_text(question), "max_tokens": self.max_tokens}
        return Job(program=few_shot_mmlu, args=args, name=name, stage=stage, namespace=namespace)

    def _chosen(self, test: BySubject) -> list[str]:
        if self.subjects is None or isinstance(self.subjects, int):
            return list(test)[: self.subjects]
        for subject in self.subjects:
            if subject not in test:
                raise DataError(f"subjects: MMLU has no {subject!r}; its subjects: {', '.join(test)}")
        return list(self.subjects)

    def _examples(self, subject: str, dev: BySubject) -> str:
        shots = dev.get(subject, ())
        if len(shots) < self.n_shots:
            raise DataError(f"n_shots={self.n_shots}, but {subject} has {len(shots)} examples; give fewer")
        if self.paper_compat:
            return examples_text(subject, shots[: min(self.n_shots, PAPER_SHOTS.get(subject, self.n_shots))])
        k = self.n_shots
        while k > 0 and self.count_tokens(examples_text(subject, shots[:k])) > self.max_shot_tokens:
            k -= 1
        return examples_text(subject, shots[:k])


def predicted(run: ProgramRun) -> str:
    """The first character of the answer, as the paper's script takes it; empty when there is none."""
    if run.status != "done":
        return ""
    return str(run.state["answer"]).strip()[:1]
