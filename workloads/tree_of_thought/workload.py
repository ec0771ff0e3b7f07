"""Tree of thought as a workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.gsm8k.data import Problem, load_problems, same_number
from workloads.gsm8k.sample import warmup_problems
from workloads.room import need_temperature, output_tokens
from workloads.sources import need_at_least, need_one_of
from workloads.tree_of_thought.game24 import LONGEST, N_OUTPUTS, breadth_first, depth_first
from workloads.tree_of_thought.game24_data import load_puzzles, reckoned
from workloads.tree_of_thought.numbers import gives_24
from workloads.tree_of_thought.plans import LEVELS, conversation, plans, recorded_outputs


class Shape(NamedTuple):
    n_branches: int
    temperature: float


FLAT, DEEP = Shape(3, 0.3), Shape(2, 0.001)
"""Of the paper's two scripts for GSM8K."""
SEARCHES = {"bfs": breadth_first, "dfs": depth_first}


class TreeOfThought(Workload):
    """task=gsm8k: plan, execute, reflect (and answer, with depth=4), every answer branching `n_branches` times.

    Branches and temperature, where they aren't given, are those of the paper's script of that depth.

    task=game24: `search=bfs|dfs` of the Game of 24, going on from the `keep` best thoughts.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        task: str = "gsm8k",
        n_questions: int | None = 32,
        depth: int = 3,
        n_branches: int | None = None,
        max_tokens: int = 256,
        temperature: float | None = None,
        search: str = "bfs",
        keep: int = 5,
        first: int = 900,
        max_context_tokens: int | None = None,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("task", task, ("gsm8k", "game24"))
        need_one_of("search", search, tuple(SEARCHES))
        need_at_least(n_questions=(n_questions, 1), depth=(depth, 1), n_branches=(n_branches, 1), keep=(keep, 1))
        need_at_least(max_tokens=(max_tokens, 1), first=(first, 0), max_context_tokens=(max_context_tokens, 1))
        need_temperature(temperature)
        if depth > len(LEVELS):
            raise ValueError(
                f"depth={depth} is not allowed: the levels are {', '.join(LEVELS)}, so at most {len(LEVELS)}"
            )
        self.data_dir = data_dir
        self.task = task
        self.n_questions = n_questions
        self.levels = list(LEVELS)[:depth]
        as_in_paper = DEEP if depth == len(LEVELS) else FLAT
        self.n_branches = as_in_paper.n_branches if n_branches is None else n_branches
        self.max_tokens = max_tokens
        self.temperature = as_in_paper.temperature if temperature is None else temperature
        self.max_context_tokens = max_context_tokens
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
        first = 0 if self.data.origin == "sample" else self.first
        if first >= len(puzzles):
            raise DataError(f"first={first} leaves no puzzle of {len(puzzles)}; give less")
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
        max_tokens = self._max_tokens(conversation(problem.question, self.levels), len(self.levels))
        limit = self.max_context_tokens

        def fits(prompt: str) -> bool:
            """Asked, since an output may have more tokens when its text is read again than when it was written."""
            return limit is None or self.count_tokens(prompt) + max_tokens <= limit

        args = {
            "question": problem.question,
            "levels": self.levels,
            "n_branches": self.n_branches,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "recorded": recorded_outputs(problem, self.levels, self.n_branches),
            "fits": None if limit is None else fits,
        }
        return Job(program=plans, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _max_tokens(self, prompt: str, n_outputs: int) -> int:
        return output_tokens(self.max_tokens, self.max_context_tokens, self.count_tokens(prompt), n_outputs)

    def _search(self, name: str, puzzle: str, recorded: object, namespace: str = "") -> Job:
        args = {
            "puzzle": puzzle,
            "keep": self.keep,
            "max_tokens": self._max_tokens(LONGEST, N_OUTPUTS),
            "recorded": recorded,
            "follow": self.outputs != "free",
        }
        program = SEARCHES[self.search]
        return Job(program=program, args=args, name=name, namespace=namespace, outputs=self.outputs)
