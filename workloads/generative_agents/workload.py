"""Generative agents as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.base import Job, Outputs, Workload
from workloads.data import DataError
from workloads.generative_agents.data import AgentCall, load_trace
from workloads.generative_agents.functions import FUNCTIONS, likely_output, prompt_of
from workloads.generative_agents.program import calls_in_order
from workloads.generative_agents.sample import MOST_AGENTS, sample_calls
from workloads.sources import need_at_least


class GenerativeAgents(Workload):
    """A job is an agent: its calls in their order, agents side by side. `paper_compat`: one job with all calls.

    Arguments are those of the trace, whatever the model says, as in the paper.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_events: int | None = 1000,
        n_agents: int = 25,
        n_memories: int | None = None,
        temperature: float = 0.0,
        max_context_tokens: int | None = None,
        seed: int = 0,
        outputs: str = "auto",
        paper_compat: bool = False,
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_events=(n_events, 1), n_agents=(n_agents, 1), n_memories=(n_memories, 0), seed=(seed, 0))
        need_at_least(max_context_tokens=(max_context_tokens, 2))
        if n_agents > MOST_AGENTS:
            raise ValueError(f"n_agents={n_agents} is not allowed: the sample has names for {MOST_AGENTS}")
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 10:
            raise ValueError(f"temperature={temperature!r} is not allowed: from 0 to 10")
        self.data_dir = data_dir
        self.n_events = n_events
        self.n_agents = n_agents
        self.n_memories = n_memories
        self.temperature = temperature
        self.max_context_tokens = max_context_tokens
        self.seed = seed
        self.asked_outputs = outputs
        self.paper_compat = paper_compat
        self._jobs: list[Job] = []

    def load(self) -> None:
        self.data, calls = load_trace(self.data_dir, self.n_agents, self.n_events, self.seed, self.n_memories)
        calls = self._fitting(calls)
        if self.paper_compat:
            self._jobs = [self._job("generative_agents/all", calls)]
            return
        agents = dict.fromkeys(call.agent for call in calls)
        self._jobs = [
            self._job(f"generative_agents/{agent}", [call for call in calls if call.agent == agent]) for agent in agents
        ]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Agents of another town, in a namespace of their own."""
        made = sample_calls(2, 12, self.seed + 1)
        calls = [AgentCall(*call, likely_output(call[1], call[2])) for call in made]
        return [self._job("warmup/0", calls, "warmup")]

    def _job(self, name: str, calls: Sequence[AgentCall], namespace: str = "") -> Job:
        args = {"calls": tuple(calls), "temperature": self.temperature}
        return Job(program=calls_in_order, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _fitting(self, calls: Sequence[AgentCall]) -> tuple[AgentCall, ...]:
        most = self.max_context_tokens
        if most is None:
            return tuple(calls)
        fitting = tuple(
            call
            for call in calls
            if self.count_tokens(prompt_of(call.function, call.arguments)) + FUNCTIONS[call.function].max_tokens <= most
        )
        if not fitting:
            raise DataError(f"max_context_tokens={most} leaves no call; give more")
        if len(fitting) < len(calls):
            told = f"{len(calls) - len(fitting)} of {len(calls)} calls left out for max_context_tokens={most}"
            self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, told))))
        return fitting
