"""Replay as a workload: which part of which trace, how fast, how long its prompts are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import DataError
from workloads.exact_text import ExactText
from workloads.sources import need_at_least, need_one_of
from workloads.trace.blocks import BlockText, read_blocks
from workloads.trace.data import AGENTS, AZURE, AgentCall, File, agent_calls, azure_lengths, mooncake_file, own_file
from workloads.trace.program import Call, recorded_request, recorded_session

TOOL_CALL = "(a tool is called)"
"""What an agent said where the trace has nothing: it called a tool."""


class Timed(Protocol):
    @property
    def seconds(self) -> float: ...


T = TypeVar("T", bound=Timed)


class Trace(Workload):
    """`source`: mooncake, agent, azure, or a file in Mooncake's format; `part`: of agent miniswe or taubench, of azure
    conv or code. The window is `duration_s` seconds from `start_s` on, and of them the first `limit` requests; they
    come `speed` times as fast as recorded.

    Mooncake's blocks of `trace_block_tokens` become blocks of `block_tokens`, all lengths likewise; Azure's lengths
    are multiplied by `length_scale`. Requests of more than `max_context_tokens` are left out, and counted in the note.
    """

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        source: str = "mooncake",
        part: str | None = None,
        limit: int | None = 500,
        start_s: float = 0,
        duration_s: float | None = None,
        speed: float = 2.0,
        block_tokens: int = 32,
        trace_block_tokens: int = 512,
        length_scale: float = 0.0625,
        pace: str = "times",
        pause_s: float = 1.0,
        max_output_tokens: int | None = None,
        max_context_tokens: int | None = 8192,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(
            limit=(limit, 1),
            block_tokens=(block_tokens, 1),
            trace_block_tokens=(trace_block_tokens, 1),
            max_output_tokens=(max_output_tokens, 1),
            max_context_tokens=(max_context_tokens, 2),
        )
        for name, value, above in (
            ("start_s", start_s, -1e-9),
            ("duration_s", duration_s, 0),
            ("speed", speed, 0),
            ("length_scale", length_scale, 0),
            ("pause_s", pause_s, -1e-9),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and value > above):
                least = "0 or more" if above < 0 else "above 0"
                raise ValueError(f"{name}={value!r} is not allowed: it must be a number {least}")
        parts = {"agent": AGENTS, "azure": AZURE}.get(source, ())
        if part is not None and not parts:
            raise ValueError(f"part={part!r} is not allowed with source={source}: it has no parts; leave it out")
        if parts:
            need_one_of("part", parts[0] if part is None else part, parts)
        need_one_of("pace", pace, ("times", "sessions"))
        if pace == "sessions" and source != "agent":
            raise ValueError(f"pace=sessions needs source=agent: source={source} doesn't say what belongs together")
        self.data_dir = data_dir
        self.source = source
        self.part = part or (parts[0] if parts else "")
        self.limit = limit
        self.start_s = start_s
        self.duration_s = duration_s
        self.speed = speed
        self.block_tokens = block_tokens
        self.trace_block_tokens = trace_block_tokens
        self.length_scale = length_scale
        self.pace = pace
        self.pause_s = pause_s
        self.max_output_tokens = max_output_tokens
        self.max_context_tokens = max_context_tokens
        self.asked_outputs = outputs
        self.served_outputs: Sequence[Outputs] = (
            ("recorded", "fixed", "free") if source == "agent" else ("fixed", "free")
        )
        self._jobs: list[Job] = []

    def load(self) -> None:
        if self.source == "agent":
            self._load_agents()
        elif self.source == "azure":
            self._load_azure()
        else:
            self._load_blocks(mooncake_file(self.data_dir) if self.source == "mooncake" else own_file(self.source))

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Prompts of our own, with another beginning and in their own namespace."""
        prompts = ("Warm-up: " + "count on, " * n for n in (20, 40, 80, 160))
        return [
            self._job(f"warmup/{i}", {"prompt": prompt, "max_tokens": 4, "recorded": "and on"}, namespace="warmup")
            for i, prompt in enumerate(prompts)
        ]

    # ---- the sources

    def _load_blocks(self, file: File) -> None:
        requests = read_blocks(file.name, file.content, self.trace_block_tokens)
        n_blocks = 1 + max(max(request.blocks) for request in requests)
        writer = BlockText(ExactText(self.count_tokens), n_blocks, self.block_tokens, self.trace_block_tokens)
        window = self._window(requests)
        kept = [one for one in window if self._fits(writer.tokens(one), self._output(writer.output_tokens(one)))]
        self._jobs = [
            self._job(
                f"trace/{i}",
                {"prompt": writer.prompt(one), "max_tokens": self._output(writer.output_tokens(one))},
                at=self._at(one),
            )
            for i, one in enumerate(kept)
        ]
        shared, tokens = sum(writer.shared(kept)), sum(writer.tokens(one) for one in kept)
        self._tell(
            file.source,
            f"blocks of {self.block_tokens} tokens instead of {self.trace_block_tokens}, lengths likewise; "
            f"{shared / max(tokens, 1):.1%} of the prompt tokens are shared with an earlier request",
            len(window) - len(kept),
        )

    def _load_azure(self) -> None:
        source, requests = azure_lengths(self.data_dir, self.part)
        text = ExactText(self.count_tokens)
        digits = text.digits(len(requests))
        self._jobs = []
        window = self._window(requests)
        for one in window:
            n_words = max(round(one.input_tokens * self.length_scale) - text.opening, digits)
            output = self._output(max(1, round(one.output_tokens * self.length_scale)))
            if self._fits(n_words + text.opening, output):
                prompt = text.joined(text.numbered(one.number, n_words, digits), one.place)
                args = {"prompt": prompt, "max_tokens": output}
                self._jobs.append(self._job(f"trace/{one.number}", args, at=self._at(one)))
        told = f"lengths times {self.length_scale:g}; it has lengths only, so prompts share their first words at most"
        self._tell(source, told, len(window) - len(self._jobs))

    def _load_agents(self) -> None:
        source, calls = agent_calls(self.data_dir, self.part)
        window = self._window(calls)
        kept = self._serveable(window)
        silent = sum(not call.output for call, _ in kept)
        if self.pace == "times":
            self._jobs = [
                self._job(f"trace/{i}", made._asdict(), at=self._at(call), conversation=call.session)
                for i, (call, made) in enumerate(kept)
            ]
        else:
            sessions: dict[str, list[tuple[AgentCall, Call]]] = {}
            for one in kept:
                sessions.setdefault(one[0].session, []).append(one)
            self._jobs = [
                Job(
                    program=recorded_session,
                    args={"calls": [made for _, made in own], "pause_s": self.pause_s / self.speed},
                    name=f"trace/{name}",
                    at=self._at(own[0][0]),
                    conversation=name,
                    outputs=self.outputs,
                )
                for name, own in sessions.items()
            ]
        told = f"{silent} outputs that the trace leaves empty (calls of tools) are {TOOL_CALL!r}" if silent else ""
        self._tell(source, told, len(window) - len(kept))

    def _serveable(self, calls: Sequence[AgentCall]) -> list[tuple[AgentCall, Call]]:
        """A session ends for us with the first call that is too long: what comes after it is longer still."""
        ended: set[str] = set()
        kept = []
        for call in calls:
            recorded = call.output or TOOL_CALL
            n_output = self._output(self.count_tokens(recorded) + 2)  # the border to the prompt may split a token
            if call.session in ended or not self._fits(self.count_tokens(call.prompt), n_output):
                ended.add(call.session)
                continue
            kept.append((call, Call(call.prompt, recorded, n_output)))
        return kept

    # ---- what the sources share

    def _window(self, requests: Sequence[T]) -> list[T]:
        """Raises DataError when nothing is in it."""
        end = float("inf") if self.duration_s is None else self.start_s + self.duration_s
        found = [one for one in requests if self.start_s <= one.seconds < end][: self.limit]
        if not found:
            raise DataError(
                f"no request of the trace comes within start_s={self.start_s:g}, duration_s={self.duration_s}; it "
                f"lasts {requests[-1].seconds:.0f} s"
            )
        return found

    def _at(self, one: Timed) -> float:
        return (one.seconds - self.start_s) / self.speed

    def _output(self, n_tokens: int) -> int:
        return n_tokens if self.max_output_tokens is None else min(n_tokens, self.max_output_tokens)

    def _fits(self, prompt: int, output: int) -> bool:
        return self.max_context_tokens is None or prompt + output <= self.max_context_tokens

    def _job(self, name: str, args: dict[str, Any], **told: Any) -> Job:
        return Job(program=recorded_request, args=args, name=name, outputs=self.outputs, **told)

    def _tell(self, source: DataSource, note: str, left_out: int) -> None:
        """Raises DataError when nothing is left to run."""
        if not self._jobs:
            raise DataError(f"max_context_tokens={self.max_context_tokens} leaves no request of {left_out}; raise it")
        dropped = f"{left_out} requests of more than {self.max_context_tokens} tokens are left out" if left_out else ""
        self.data = source._replace(note="; ".join(part for part in (source.note, note, dropped) if part))
