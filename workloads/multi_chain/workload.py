"""Multi-chain reasoning on GSM8K as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.gsm8k.data import Problem, last_number, load_problems, same_number
from workloads.gsm8k.sample import warmup_problems
from workloads.multi_chain.program import STYLES, multi_chain
from workloads.sources import need_at_least


class MultiChain(Workload):
    """`n_chains` chains of thought a question, in six styles, merged into an answer of at most 16 tokens.

    Recorded chains are the published solution, told in as many ways (see `recorded_chain`).
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_questions: int | None = 64,
        n_chains: int = 5,
        max_tokens: int = 256,
        temperature: float = 0.3,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_questions=(n_questions, 1), n_chains=(n_chains, 1), max_tokens=(max_tokens, 1))
        self.data_dir = data_dir
        self.n_questions = n_questions
        self.n_chains = n_chains
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self.data, _, test = load_problems(self.data_dir)
        chosen = test[: self.n_questions]
        self._jobs = [self._job(f"multi_chain/{i}", problem) for i, problem in enumerate(chosen)]
        self._answers = {job.name: problem.answer for job, problem in zip(self._jobs, chosen, strict=True)}

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Problems of our own, in a namespace of their own."""
        return [self._job(f"warmup/{i}", Problem(*row), "warmup") for i, row in enumerate(warmup_problems()[:2])]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions whose merged answer's last number is right; a failed one counts as wrong."""
        if not finished:
            return None
        right = sum(
            run.status == "done" and same_number(last_number(run.state["answer"]), self._answers[run.name])
            for run in finished
        )
        return Score("accuracy", right / len(finished), len(finished))

    def _job(self, name: str, problem: Problem, namespace: str = "") -> Job:
        args = {
            "question": problem.question,
            "n_chains": self.n_chains,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "chains": [recorded_chain(problem, i) for i in range(self.n_chains)],
            "answer": f" {problem.answer}.",
        }
        return Job(program=multi_chain, args=args, name=name, namespace=namespace, outputs=self.outputs)


def recorded_chain(problem: Problem, i: int) -> str:
    """The solution's steps behind an opening that is chain i's own, so that no two chains begin alike."""
    opening = STYLES[i % len(STYLES)].split(",")[0].split(" ")[-1].strip(".:").lower()
    return f" ({i + 1}, {opening}) {' '.join(problem.steps)} So the answer is {problem.answer}.\n"
