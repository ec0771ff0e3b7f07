"""Tree of thought as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.gsm8k.data import Problem, load_problems, same_number
from workloads.gsm8k.sample import warmup_problems
from workloads.sources import need_at_least, need_one_of
from workloads.tree_of_thought.game24 import breadth_first, depth_first
from workloads.tree_of_thought.game24_data import load_puzzles, reckoned
from workloads.tree_of_thought.numbers import gives_24
from workloads.tree_of_thought.plans import LEVELS, plans, recorded_outputs

SEARCHES = {"bfs": breadth_first, "dfs": depth_first}


class TreeOfThought(Workload):
    """task=gsm8k: plan, execute, reflect (and answer, with depth=4), every answer branching `n_branches` times.

    task=game24: `search=bfs|dfs` of the Game of 24, going on from the `keep` best thoughts.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        task: str = "gsm8k",
        n_questions: int | None = 16,
        depth: int = 3,
        n_branches: int = 3,
        max_tokens: int = 256,
        temperature: float = 0.3,
        search: str = "bfs",
        keep: int = 5,
        first: int = 900,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("task", task, ("gsm8k", "game24"))
        need_one_of("search", search, tuple(SEARCHES))
        need_at_least(n_questions=(n_questions, 1), depth=(depth, 1), n_branches=(n_branches, 1), keep=(keep, 1))
        need_at_least(max_tokens=(max_tokens, 1), first=(first, 0))
        if depth > len(LEVELS):
            raise ValueError(
                f"depth={depth} is not allowed: the levels are {', '.join(LEVELS)}, so at most {len(LEVELS)}"
            )
        self.data_dir = data_dir
        self.task = task
        self.n_questions = n_questions
        self.levels = list(LEVELS)[:depth]
        self.n_branches = n_branches
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.search = search
        self.keep = keep
        self.first = first
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        if self.task == "gsm8k":
            self.data, _, test = load_problems(self.data_dir)
            chosen = test[: self.n_questions]
            self._jobs = [self._plans(f"tree_of_thought/{i}", problem) for i, problem in enumerate(chosen)]
            self._answers = {job.name: problem.answer for job, problem in zip(self._jobs, chosen, strict=True)}
            return
        self.data, puzzles, logs = load_puzzles(self.data_dir)
        first = self.first if len(puzzles) > self.first else 0
        found = puzzles[first:][: self.n_questions]
        logs = logs if self.search == "bfs" else {}
        self._jobs = [
            self._search(f"tree_of_thought/{first + i}", puzzle, logs.get(puzzle) or reckoned(puzzle))
            for i, puzzle in enumerate(found)
        ]
        self._answers = {job.name: puzzle for job, puzzle in zip(self._jobs, found, strict=True)}

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """A problem or puzzle of our own, in a namespace of its own."""
        if self.task == "gsm8k":
            return [self._plans("warmup/0", Problem(*warmup_problems()[0]), "warmup")]
        return [self._search("warmup/0", "1 2 3 4", reckoned("1 2 3 4", most=3), "warmup")]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions whose majority is right, or of the puzzles solved; a failed one counts as wrong."""
        if not finished:
            return None
        right = 0
        for run in finished:
            said, asked = str(run.state.ret_value or ""), self._answers[run.name]
            if run.status == "done":
                right += same_number(said, asked) if self.task == "gsm8k" else gives_24(said, asked)
        return Score("accuracy" if self.task == "gsm8k" else "solved", right / len(finished), len(finished))

    def _plans(self, name: str, problem: Problem, namespace: str = "") -> Job:
        args = {
            "question": problem.question,
            "levels": self.levels,
            "n_branches": self.n_branches,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "recorded": recorded_outputs(problem, self.levels, self.n_branches),
        }
        return Job(program=plans, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _search(self, name: str, puzzle: str, recorded: object, namespace: str = "") -> Job:
        args = {
            "puzzle": puzzle,
            "keep": self.keep,
            "max_tokens": self.max_tokens,
            "recorded": recorded,
            "follow": self.outputs != "free",
        }
        program = SEARCHES[self.search]
        return Job(program=program, args=args, name=name, namespace=namespace, outputs=self.outputs)
