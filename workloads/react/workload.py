"""ReAct as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.react.data import Chain, Task, Turn, examples_of, load_live, load_replay
from workloads.react.program import INSTRUCTION, agent, replay, replay_as_in_the_paper, said
from workloads.react.sample import sample_chains
from workloads.react.tools import Desk, Library, normalised, parsed_action
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
        max_context_tokens: int | None = None,
        outputs: str = "auto",
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("mode", mode, ("replay", "live"))
        need_one_of("retriever", retriever, KINDS)
        need_at_least(n_questions=(n_questions, 1), max_tokens=(max_tokens, 1), max_steps=(max_steps, 1))
        need_at_least(max_context_tokens=(max_context_tokens, 1))
        if not isinstance(tool_seconds, int | float) or isinstance(tool_seconds, bool) or not 0 <= tool_seconds < 3600:
            raise ValueError(f"tool_seconds={tool_seconds!r} is not allowed: it must be seconds, from 0 to 3600")
        if paper_compat and mode == "live":
            raise ValueError("paper_compat=true replays chains as the paper did: leave mode=replay")
        if tool_seconds and mode == "replay":
            raise ValueError("tool_seconds is for mode=live: in a replay no tool works")
        if paper_compat:
            # what is thrown away may not be the text that is appended: that would lie in the cache already
            self.served_outputs = ("fixed", "free")
        self.data_dir = data_dir
        self.mode = mode
        self.n_questions = n_questions
        self.max_tokens = max_tokens
        self.max_steps = max_steps
        self.retriever = retriever
        self.tool_seconds = tool_seconds
        self.max_context_tokens = max_context_tokens
        self.asked_outputs = outputs
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self._answers = {}
        if self.mode == "replay":
            self.data, examples, recorded = load_replay(self.data_dir)
            examples, chains = self._fitting(examples, recorded[: self.n_questions])
            self._jobs = [
                self._replay(f"react/{i}", examples, question, turns) for i, (question, turns) in enumerate(chains)
            ]
            return
        self.data, examples, tasks, pages = load_live(self.data_dir)
        library = Library(pages, self.retriever)
        chosen = tasks[: self.n_questions]
        told = [Chain(task.question, observed(recorded_turns(task), library)) for task in chosen]
        examples, _ = self._fitting(examples, told)
        self._jobs = [self._live(f"react/{i}", examples, task, library) for i, task in enumerate(chosen)]
        self._answers = {job.name: task.answer for job, task in zip(self._jobs, chosen, strict=True)}

    def _fitting(self, examples: str, chains: Sequence[Chain]) -> tuple[str, list[Chain]]:
        """Examples are left out, last first, until every chain fits; of one that still doesn't, its last turns.

        Raises DataError where not even a first turn fits.
        """
        one_by_one = examples_of(examples)
        for n in range(len(one_by_one), -1, -1):
            shown = "".join(one_by_one[:n])
            kept = [chain._replace(turns=chain.turns[: self._n_fitting(shown, chain)]) for chain in chains]
            if all(len(some.turns) == len(chain.turns) for some, chain in zip(kept, chains)):
                break
        short = sum(len(some.turns) < len(chain.turns) for some, chain in zip(kept, chains))
        if not all(chain.turns for chain in kept):
            raise DataError(f"max_context_tokens={self.max_context_tokens} leaves no room for a first turn; give more")
        if n < len(one_by_one):
            note = f"to fit into {self.max_context_tokens} tokens, {n} of {len(one_by_one)} examples are shown"
            note += f", and {short} of {len(chains)} chains end early" if short else ""
            self.data = self.data._replace(note="; ".join(one for one in (self.data.note, note) if one))
        return shown, kept

    def _n_fitting(self, examples: str, chain: Chain) -> int:
        """How many turns can be asked for: the prompt of each leaves room for `max_tokens` more."""
        if self.max_context_tokens is None:
            return len(chain.turns)
        text = f"{INSTRUCTION}{examples}Question: {chain.question}\n"
        unknown = 0  # tokens of outputs that the model chooses: they may be longer than the recorded ones
        for i, turn in enumerate(chain.turns, 1):
            text += f"Thought {i}:"
            if self.count_tokens(text) + unknown + self.max_tokens > self.max_context_tokens:
                return i - 1
            text += f"{said(i, turn)}Observation {i}: {turn.observation}\n"
            unknown += self.max_tokens if self.outputs == "free" and not self.paper_compat else 0
        after = self.count_tokens(text) + self.max_tokens if self.paper_compat else 0  # one call more
        return len(chain.turns) - (after > self.max_context_tokens)

    def _fits(self, prompt: str) -> bool:
        limit = self.max_context_tokens
        return limit is None or self.count_tokens(prompt) + self.max_tokens <= limit

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
            "fits": self._fits,
        }
        return Job(program=agent, args=args, name=name, outputs=self.outputs)


def recorded_turns(task: Task) -> tuple[Turn, ...]:
    """What one does who knows which pages hold the answer: reads them one after another, then says it."""
    turns = [
        Turn(f"I need to search {title}." if i == 0 else f"Next I need {title}.", f"Search[{title}]", "")
        for i, title in enumerate(task.gold)
    ]
    return (*turns, Turn(f"So the answer is {task.answer}.", f"Finish[{task.answer}]", ""))


def observed(turns: Sequence[Turn], library: Library) -> tuple[Turn, ...]:
    """With what the tools show of all but the last, which finishes."""
    desk, *last = Desk(library), turns[-1]
    seen = [turn._replace(observation=desk.act(parsed_action(turn.action))) for turn in turns[:-1]]
    return (*seen, *last)
