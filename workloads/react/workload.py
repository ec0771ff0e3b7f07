"""ReAct as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.react.data import Task, Turn, load_live, load_replay
from workloads.react.program import agent, replay, replay_as_in_the_paper
from workloads.react.sample import sample_chains
from workloads.react.tools import Library, normalised
from workloads.retrieval import KINDS
from workloads.sources import need_at_least, need_one_of


class React(Workload):
    """mode=replay: recorded chains of thoughts, actions and observations. mode=live: an agent with a library."""

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        mode: str = "replay",
        n_questions: int | None = 100,
        max_tokens: int = 200,
        max_steps: int = 7,
        retriever: str = "bm25",
        tool_seconds: float = 0.0,
        outputs: str = "auto",
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("mode", mode, ("replay", "live"))
        need_one_of("retriever", retriever, KINDS)
        need_at_least(n_questions=(n_questions, 1), max_tokens=(max_tokens, 1), max_steps=(max_steps, 1))
        if not isinstance(tool_seconds, int | float) or not 0 <= tool_seconds < 3600:
            raise ValueError(f"tool_seconds={tool_seconds!r} is not allowed: it must be seconds, from 0 to 3600")
        if paper_compat and mode == "live":
            raise ValueError("paper_compat=true replays chains as the paper did: leave mode=replay")
        self.data_dir = data_dir
        self.mode = mode
        self.n_questions = n_questions
        self.max_tokens = max_tokens
        self.max_steps = max_steps
        self.retriever = retriever
        self.tool_seconds = tool_seconds
        self.asked_outputs = outputs
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self._answers = {}
        if self.mode == "replay":
            self.data, examples, chains = load_replay(self.data_dir)
            self._jobs = [
                self._replay(f"react/{i}", examples, question, turns)
                for i, (question, turns) in enumerate(chains[: self.n_questions])
            ]
            return
        self.data, examples, tasks, pages = load_live(self.data_dir)
        library = Library(pages, self.retriever)
        chosen = tasks[: self.n_questions]
        self._jobs = [self._live(f"react/{i}", examples, task, library) for i, task in enumerate(chosen)]
        self._answers = {job.name: task.answer for job, task in zip(self._jobs, chosen, strict=True)}

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Two of the sample's chains behind other examples, in a namespace of their own."""
        chains = [(question, [Turn(*turn) for turn in turns]) for question, turns in sample_chains()[:2]]
        return [
            self._replay(f"warmup/{i}", "Warm-up.\n", question, turns, "warmup")
            for i, (question, turns) in enumerate(chains)
        ]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the agents whose answer is right as HotpotQA compares them; chains have no score."""
        if not finished or not self._answers:
            return None
        right = sum(
            run.status == "done" and normalised(str(run.state.ret_value)) == normalised(self._answers[run.name])
            for run in finished
        )
        return Score("exact match", right / len(finished), len(finished))

    def _replay(self, name: str, examples: str, question: str, turns: Sequence[Turn], namespace: str = "") -> Job:
        args = {"examples": examples, "question": question, "turns": turns, "max_tokens": self.max_tokens}
        program = replay_as_in_the_paper if self.paper_compat else replay
        return Job(program=program, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _live(self, name: str, examples: str, task: Task, library: Library) -> Job:
        args = {
            "examples": examples,
            "question": task.question,
            "library": library,
            "max_steps": self.max_steps,
            "max_tokens": self.max_tokens,
            "tool_seconds": self.tool_seconds,
            "recorded": recorded_turns(task),
            "follow": self.outputs != "free",
        }
        return Job(program=agent, args=args, name=name, outputs=self.outputs)


def recorded_turns(task: Task) -> tuple[Turn, ...]:
    """What one does who knows which pages hold the answer: reads them one after another, then says it."""
    turns = [
        Turn(f"I need to search {title}." if i == 0 else f"Next I need {title}.", f"Search[{title}]", "")
        for i, title in enumerate(task.gold)
    ]
    return (*turns, Turn(f"So the answer is {task.answer}.", f"Finish[{task.answer}]", ""))
