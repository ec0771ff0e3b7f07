"""GSM8K as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.gsm8k.data import Problem, last_number, load_problems, same_number
from workloads.gsm8k.program import examples_text, few_shot_gsm8k, question_text
from workloads.gsm8k.sample import warmup_problems
from workloads.sources import need_at_least


class GSM8K(Workload):
    """The first `n_shots` problems of the training split, then questions of the test split.

    With `paper_compat` the shots are the first test problems, as in the paper's script, which are asked as well.
    Recorded outputs are the published solutions.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_shots: int = 5,
        n_questions: int | None = 200,
        max_tokens: int = 256,
        outputs: str = "auto",
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_shots=(n_shots, 0), n_questions=(n_questions, 1), max_tokens=(max_tokens, 1))
        self.data_dir = data_dir
        self.n_shots = n_shots
        self.n_questions = n_questions
        self.max_tokens = max_tokens
        self.asked_outputs = outputs
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self.data, train, test = load_problems(self.data_dir)
        shots = (test if self.paper_compat else train)[: self.n_shots]
        if len(shots) < self.n_shots:
            raise DataError(f"n_shots={self.n_shots}, but there are only {len(shots)} problems to show; give fewer")
        examples = examples_text(shots)
        chosen = test[: self.n_questions]
        self._jobs = [self._job(f"gsm8k/{i}", examples, problem) for i, problem in enumerate(chosen)]
        self._answers = {job.name: problem.answer for job, problem in zip(self._jobs, chosen, strict=True)}

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Problems of our own, with another beginning and in a namespace of their own."""
        *shots, a, b = (Problem(*row) for row in warmup_problems()[: self.n_shots + 2])
        examples = "Warm-up. " + examples_text(shots)
        return [self._job(f"warmup/{i}", examples, one, "warmup") for i, one in enumerate((a, b))]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions whose last number is right; a failed one counts as wrong."""
        if not finished:
            return None
        right = sum(
            run.status == "done" and same_number(last_number(run.state["answer"]), self._answers[run.name])
            for run in finished
        )
        return Score("accuracy", right / len(finished), len(finished))

    def _job(self, name: str, examples: str, problem: Problem, namespace: str = "") -> Job:
        args = {
            "examples": examples,
            "question": question_text(problem),
            "solution": " " + problem.solution,
            "max_tokens": self.max_tokens,
        }
        return Job(program=few_shot_gsm8k, args=args, name=name, namespace=namespace, outputs=self.outputs)
