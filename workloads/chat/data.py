"""Conversations: what the user says, and what the assistant said where that is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.chat.sample import sample_agents, sample_conversations
from workloads.data import DataError, as_text, jsonl_rows
from workloads.sources import Files, find_files, sample_source

QUESTIONS, REFERENCES, CONVERSATIONS = (
    "mt_bench_question.jsonl",
    "mt_bench_reference_gpt-4.jsonl",
    "dummy_conversation.json",
)
ALSO = {QUESTIONS: ("question.jsonl",), REFERENCES: ("gpt-4.jsonl",)}
AGENTS = "miniswe.jsonl"


class Turn(NamedTuple):
    said: str
    """By the user; of an agent, what has come since the last call: an observation."""
    answer: str | None
    """Recorded; None where nothing is."""


class Conversations(NamedTuple):
    source: DataSource
    conversations: tuple[tuple[Turn, ...], ...]


class _Going(NamedTuple):
    """A session that calls may still go on from."""

    prompt: str
    """Of its last call."""
    turns: list[Turn]


def load_mt_bench(data_dir: str | None) -> Conversations:
    """80 questions of two turns; GPT-4's answers to those that have one. Raises DataError."""
    found = find_files("mt_bench", data_dir, (QUESTIONS,), (REFERENCES,), also=ALSO)
    if not isinstance(found, Files):
        return _sample("MT-Bench", found.why)
    answers: dict[int, list[str]] = {}
    if REFERENCES in found.contents:
        name, fields = str(found.paths[REFERENCES]), {"question_id": int, "choices": list}
        for place, row in jsonl_rows(name, found.contents[REFERENCES], fields):
            answers[row["question_id"]] = _parsed(place, _answers, row)
    conversations = []
    name, fields = str(found.paths[QUESTIONS]), {"question_id": int, "turns": list}
    for _, row in jsonl_rows(name, found.contents[QUESTIONS], fields):
        known = answers.get(row["question_id"], [])
        turns = [Turn(str(said), known[i] if i < len(known) else None) for i, said in enumerate(row["turns"])]
        conversations.append(tuple(turns))
    return Conversations(found.source, tuple(conversations))


def load_conversations(data_dir: str | None) -> Conversations:
    """FastChat's conversations of one to three turns, with answers. Raises DataError."""
    found = find_files("mt_bench", data_dir, (CONVERSATIONS,))
    if not isinstance(found, Files):
        return _sample("recorded conversations", found.why)
    name = str(found.paths[CONVERSATIONS])
    try:
        rows: Any = json.loads(as_text(name, found.contents[CONVERSATIONS]))
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error}); get the file again") from error
    if not isinstance(rows, list):
        raise DataError(f"{name}: a JSON list of conversations is needed, not {type(rows).__name__}")
    conversations = []
    for i, row in enumerate(rows):
        said = _parsed(f"{name}, entry {i}", _said, row)
        pairs = zip(said[::2], said[1::2])
        conversations.append(tuple(Turn(asked[1], answered[1] or None) for asked, answered in pairs))
    return Conversations(found.source, tuple(one for one in conversations if one))


def load_agents(data_dir: str | None) -> Conversations:
    """Recorded sessions of a coding agent: each call's prompt is the last one's and what was observed since."""
    found = find_files("trace_lmcache_agent", data_dir, (AGENTS,))
    if not isinstance(found, Files):
        made = tuple(tuple(Turn(*turn) for turn in session) for session in sample_agents())
        return Conversations(sample_source("recorded agent sessions", made, found.why), made)
    sessions: list[list[Turn]] = []
    going: dict[str, _Going] = {}
    fields = {"input": str, "output": str, "session_id": str}
    for _, row in jsonl_rows(str(found.paths[AGENTS]), found.contents[AGENTS], fields):
        known = going.get(row["session_id"])
        if known is None or not row["input"].startswith(known.prompt):  # the agent begins, or begins anew
            sessions.append([])
            known = _Going("", sessions[-1])
        known.turns.append(Turn(row["input"][len(known.prompt) :], row["output"] or None))
        going[row["session_id"]] = _Going(row["input"], known.turns)
    return Conversations(found.source, tuple(map(tuple, sessions)))


def _sample(title: str, why: str) -> Conversations:
    made = tuple(tuple(Turn(*turn) for turn in one) for one in sample_conversations())
    return Conversations(sample_source(title, made, why), made)


def _answers(row: Mapping[str, Any]) -> list[str]:
    return list(row["choices"][0]["turns"])


def _said(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(turn["from"], str(turn["value"])) for turn in row["conversations"]]


def _parsed(place: str, read: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any]) -> Any:
    try:
        return read(row)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(f"{place}: its turns have another form ({error!r}); get the file again") from error
