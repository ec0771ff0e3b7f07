"""Generative agents as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import DataError, jsonl_rows
from workloads.generative_agents.program import agent
from workloads.generative_agents.town import LIMITS, AgentCall, town
from workloads.sources import Files, find_files, need_at_least

CALLS = "agent_calls.jsonl"


class GenerativeAgents(Workload):
    """A program an agent; its calls follow one another, agents run side by side.

    A recorded trace is read where there is one: JSON lines of agent, function, prompt and answer, in the order of time.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_agents: int = 8,
        n_events: int = 200,
        n_memories: int = 12,
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_agents=(n_agents, 1), n_events=(n_events, 1), n_memories=(n_memories, 0))
        self.data_dir = data_dir
        self.n_agents = n_agents
        self.n_events = n_events
        self.n_memories = n_memories
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []

    def load(self) -> None:
        self.data, calls = self._calls()
        agents: dict[str, list[AgentCall]] = {}
        for call in calls:
            agents.setdefault(call.agent, []).append(call)
        self._jobs = [
            Job(
                program=agent,
                args={"calls": own},
                name=f"generative_agents/{name}",
                conversation=name,
                outputs=self.outputs,
            )
            for name, own in agents.items()
        ]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Two calls of somebody who isn't in town, in a namespace of their own."""
        calls = [AgentCall("nobody", "poignancy", f"Warm-up {i}. Rate:", " 1") for i in range(2)]
        return [Job(program=agent, args={"calls": calls}, name="warmup/0", namespace="warmup", outputs=self.outputs)]

    def _calls(self) -> tuple[DataSource, list[AgentCall]]:
        """Raises DataError."""
        found = find_files("generative_agents", self.data_dir, (CALLS,))
        if isinstance(found, Files):
            calls = []
            fields = {"agent": str, "function": str, "prompt": str, "answer": str}
            for place, row in jsonl_rows(str(found.paths[CALLS]), found.contents[CALLS], fields):
                if row["function"] not in LIMITS:
                    raise DataError(f"{place}: unknown function {row['function']!r}; known: {', '.join(LIMITS)}")
                if not row["answer"]:
                    raise DataError(f"{place}: the answer is empty; a recorded output has at least one token")
                calls.append(AgentCall(*(row[field] for field in AgentCall._fields)))
            return found.source, calls
        note = f"a generated trace of {self.n_events} events, not the original's, which isn't published with it"
        return DataSource("made", note=note), list(town(self.n_agents, self.n_events, self.n_memories, self.seed))
