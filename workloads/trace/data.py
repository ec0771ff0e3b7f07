"""Recorded traffic, read: Mooncake's blocks, LMCache's agent sessions, Azure's lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, csv_rows, digest, jsonl_rows, read_bytes
from workloads.sources import NoFiles, find_files, sample_source
from workloads.trace.sample import sample_agent, sample_azure, sample_mooncake

MOONCAKE = "conversation_trace.jsonl"
AGENTS = ("miniswe", "taubench")
AZURE = ("conv", "code")
AGENT_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "timestamp": (int, float),
    "input": str,
    "output": str,
    "session_id": str,
}
AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


class File(NamedTuple):
    """One file of a trace, or what our own code made in its place."""

    source: DataSource
    name: str
    content: bytes


class AgentCall(NamedTuple):
    """One call of an agent: text in, text out."""

    place: str
    seconds: float
    """When it came, from the trace's first call on."""
    session: str
    prompt: str
    output: str
    """Empty where the agent called a tool, which the trace doesn't show."""


class Lengths(NamedTuple):
    """One request of which only the lengths are known."""

    number: int
    """Its place in the order of arrival."""
    place: str
    seconds: float
    input_tokens: int
    output_tokens: int


def mooncake_file(data_dir: str | None) -> File:
    """FAST'25's conversations: an hour of 12,031 requests. Raises DataError."""
    return _found("trace_mooncake", data_dir, MOONCAKE, "Mooncake's trace", sample_mooncake)


def own_file(path: str) -> File:
    """A file of the user's in Mooncake's format. Raises DataError."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(
            f"workload.source={path}: there is no such file; give mooncake, agent, azure or a file in Mooncake's format"
        )
    content = read_bytes(file)
    return File(DataSource("files", str(file), digest({file.name: content})), str(file), content)


def agent_calls(data_dir: str | None, part: str) -> tuple[DataSource, list[AgentCall]]:
    """Calls of `miniswe` or `taubench`, by time. Raises DataError naming file and line."""
    file = _found("trace_lmcache_agent", data_dir, f"{part}.jsonl", "LMCache's agent traces", sample_agent)
    calls = []
    for place, row in jsonl_rows(file.name, file.content, AGENT_FIELDS):
        if not row["input"]:
            raise DataError(f"{place}: the input is empty; every call needs a prompt")
        calls.append(AgentCall(place, row["timestamp"] / 1e6, row["session_id"], row["input"], row["output"]))
    if not calls:
        raise DataError(f"{file.name}: no calls in it; get the file again")
    calls.sort(key=lambda call: call.seconds)
    return file.source, [call._replace(seconds=call.seconds - calls[0].seconds) for call in calls]


def azure_lengths(data_dir: str | None, part: str) -> tuple[DataSource, list[Lengths]]:
    """Requests of `conv` or `code`, by time (Splitwise, Patel et al., ISCA 2024). Raises DataError naming the line."""
    name = f"AzureLLMInferenceTrace_{part}.csv"
    file = _found("trace_azure_llm_2023", data_dir, name, "Azure's traces", sample_azure)
    found = []
    rows = csv_rows(file.name, file.content, len(AZURE_COLUMNS))
    if (header := next(rows, ("", []))[1]) != AZURE_COLUMNS:
        raise DataError(f"{file.name}, line 1: columns {', '.join(AZURE_COLUMNS)} are needed, not {', '.join(header)}")
    for place, (time, context, generated) in rows:
        try:
            when, lengths = datetime.fromisoformat(time), (int(context), int(generated))
        except ValueError as error:
            raise DataError(f"{place}: {error}; a time and two numbers of tokens are needed") from None
        if min(lengths) < 0:
            raise DataError(f"{place}: lengths are 0 tokens or more, not {context} and {generated}")
        found.append((when, place, lengths))
    if not found:
        raise DataError(f"{file.name}: no requests in it; get the file again")
    found.sort(key=lambda one: one[0])
    start = found[0][0]
    return file.source, [
        Lengths(i, place, (when - start).total_seconds(), *lengths) for i, (when, place, lengths) in enumerate(found)
    ]


def _found(folder: str, data_dir: str | None, name: str, title: str, sample: Callable[[], bytes]) -> File:
    files = find_files(folder, data_dir, [name])
    if isinstance(files, NoFiles):
        content = sample()
        return File(sample_source(title, content.decode(), files.why), "sample", content)
    return File(files.source, str(files.paths[name]), files.contents[name])
