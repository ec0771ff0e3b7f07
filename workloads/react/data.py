"""Examples, recorded chains and questions with their paragraphs, from files or our sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, as_text, jsonl_rows
from workloads.react.sample import sample_chains, sample_examples, sample_tasks
from workloads.sources import Files, find_files, joined, sample_source

PROMPTS = "prompts_naive.json"
CHAINS = "sglang_hotpotqa_100.jsonl"
TASKS = "hotpotqa_distractor_100.jsonl"
EXAMPLES = "webthink_simple6"
"""Key of the six solved questions in the file of prompts."""


class Turn(NamedTuple):
    thought: str
    action: str
    """E.g. Search[Vienna]."""
    observation: str


class Chain(NamedTuple):
    question: str
    turns: tuple[Turn, ...]


class Page(NamedTuple):
    title: str
    sentences: tuple[str, ...]


class Task(NamedTuple):
    question: str
    answer: str
    gold: tuple[str, ...]
    """Titles of the pages that hold the answer, in the order in which one reads them."""


class Replay(NamedTuple):
    source: DataSource
    examples: str
    """Six solved questions."""
    chains: tuple[Chain, ...]


class Live(NamedTuple):
    source: DataSource
    examples: str
    tasks: tuple[Task, ...]
    pages: tuple[Page, ...]


def load_replay(data_dir: str | None) -> Replay:
    """Raises DataError."""
    found = find_files("react", data_dir, (PROMPTS, CHAINS), also={CHAINS: ("hotpotqa_100.jsonl",)})
    if not isinstance(found, Files):
        chains = tuple(Chain(question, tuple(Turn(*turn) for turn in turns)) for question, turns in sample_chains())
        return Replay(sample_source("recorded ReAct chains", chains, found.why), sample_examples(), chains)
    name = str(found.paths[CHAINS])
    chains = tuple(_chain(place, row) for place, row in jsonl_rows(name, found.contents[CHAINS], {}))
    if not chains:
        raise DataError(f"{name}: no chains in it; get the file again")
    return Replay(found.source, _examples(found), chains)


def load_live(data_dir: str | None) -> Live:
    """The examples come with `load_replay`'s files. Raises DataError."""
    found = find_files("hotpotqa_distractor_100", data_dir, (TASKS,))
    if not isinstance(found, Files):
        tasks, pages = sample_tasks()
        source = sample_source("HotpotQA", (tasks, pages), found.why)
        return Live(
            source,
            sample_examples(),
            tuple(Task(*task) for task in tasks),
            tuple(Page(*page) for page in pages),
        )
    prompts = find_files("react", data_dir, (PROMPTS,)) if _has_react(data_dir) else None
    tasks_found: list[Task] = []
    pages_found: dict[str, Page] = {}
    name = str(found.paths[TASKS])
    fields = {"question": str, "answer": str, "supporting_facts": dict, "context": dict}
    for place, row in jsonl_rows(name, found.contents[TASKS], fields):
        try:
            gold = tuple(dict.fromkeys(row["supporting_facts"]["title"]))
            context = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
            for title, sentences in context:
                pages_found.setdefault(title, Page(title, tuple(sentence.strip() for sentence in sentences)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: supporting_facts or context have another form ({error!r})") from error
        tasks_found.append(Task(row["question"], row["answer"], gold))
    source = found.source if prompts is None else joined(found.source, prompts.source)  # type: ignore[union-attr]
    examples = sample_examples() if prompts is None else _examples(prompts)  # type: ignore[arg-type]
    return Live(source, examples, tuple(tasks_found), tuple(pages_found.values()))


def _has_react(data_dir: str | None) -> bool:
    try:
        return isinstance(find_files("react", data_dir, (PROMPTS,)), Files)
    except DataError:  # a folder with the questions alone
        return False


def _examples(found: Files) -> str:
    name = str(found.paths[PROMPTS])
    try:
        examples = json.loads(as_text(name, found.contents[PROMPTS]))[EXAMPLES]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: no prompts with the key {EXAMPLES!r} ({error!r}); get the file again") from error
    return str(examples).strip() + "\n"


def _chain(place: str, row: Mapping[str, Any]) -> Chain:
    """One entry: the question, with its turns."""
    try:
        ((question, turns),) = row.items()
        found = tuple(
            Turn(turn["thought"].strip(), turn["action"].strip(), turn["observation"].strip()) for turn in turns
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{place}: a question with its thoughts, actions and observations is needed ({error!r})"
        ) from error
    if not found or not all(turn.action for turn in found):
        raise DataError(f"{place}: a chain needs at least one turn, and every turn an action")
    return Chain(question.removeprefix("Question:").strip(), found)
