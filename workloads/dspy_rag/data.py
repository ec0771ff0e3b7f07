"""Questions with the library that answers them, and recorded calls of DSPy programs: files, the hub, our sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, check_fields, from_hub, jsonl_rows
from workloads.dspy_rag.sample import sample_calls, sample_library
from workloads.sources import Files, find_files, sample_source

TASKS = "hotpotqa_distractor_100.jsonl"
CALLS = "turbo_lm_calls.jsonl"
HUB_NAME = "hotpotqa/hotpot_qa"
HUB_QUESTIONS = 100
"""Of the hub's thousands, with ten paragraphs each."""


class Question(NamedTuple):
    question: str
    answer: str
    facts: tuple[str, ...]
    """The sentences that lead to the answer, in that order."""


class Library(NamedTuple):
    source: DataSource
    questions: tuple[Question, ...]
    passages: tuple[str, ...]
    """Paragraphs as DSPy's retrievers give them: title, bar, text."""


class RecordedCall(NamedTuple):
    prompt: str
    output: str
    max_tokens: int

    @property
    def template(self) -> str:
        """What calls of one prompt template begin with: the instruction."""
        return self.prompt.split("\n\n---\n\n", 1)[0]


class RecordedCalls(NamedTuple):
    source: DataSource
    calls: tuple[RecordedCall, ...]
    """In the order in which they were made."""


def load_library(data_dir: str | None) -> Library:
    """Raises DataError when the folder named has no HotpotQA with paragraphs that can be read."""
    found = find_files("hotpotqa_distractor_100", data_dir, (TASKS,))
    if isinstance(found, Files):
        name = str(found.paths[TASKS])
        library = _library(found.source, jsonl_rows(name, found.contents[TASKS], {}))
        if not library.questions:
            raise DataError(f"{name}: no questions in it; get the file again")
        return library
    hub = from_hub(HUB_NAME, "distractor", ("validation",))
    if hub.splits is not None:
        rows = hub.splits["validation"][:HUB_QUESTIONS]
        source = DataSource("hub", HUB_NAME, hub.digest(), found.why)
        return _library(source, ((f"{HUB_NAME}, row {i}", row) for i, row in enumerate(rows)))
    asked, passages = sample_library()
    questions = tuple(Question(*one) for one in asked)
    return Library(sample_source("HotpotQA", (asked, passages), found.why, hub.why_not), questions, tuple(passages))


def load_calls(data_dir: str | None) -> RecordedCalls:
    """Raises DataError when the folder named has no recorded calls that can be read."""
    found = find_files("dspy_rag", data_dir, (CALLS,))
    if not isinstance(found, Files):
        made = sample_calls()
        source = sample_source("the recorded calls of DSPy programs", made, found.why)
        return RecordedCalls(source, tuple(RecordedCall(*call) for call in made))
    name = str(found.paths[CALLS])
    rows = jsonl_rows(name, found.contents[CALLS], {"time": (int, float), "request": dict, "choices": list})
    timed = [(row["time"], _call(place, row)) for place, row in rows]
    if not timed:
        raise DataError(f"{name}: no calls in it; get the file again")
    return RecordedCalls(found.source, tuple(call for _, call in sorted(timed, key=lambda one: one[0])))


def _library(source: DataSource, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Library:
    questions: list[Question] = []
    passages: dict[str, str] = {}
    for place, row in rows:
        check_fields(place, row, {"question": str, "answer": str, "supporting_facts": dict, "context": dict})
        try:
            pages = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
            for title, sentences in pages.items():
                text = " ".join(" ".join(sentences).split())
                passages.setdefault(title, f"{title} | {text}")
            facts = zip(row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True)
            told = tuple(pages[title][i].strip() for title, i in facts if i < len(pages[title]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: supporting_facts or context have another form ({error!r})") from error
        if not row["question"].strip() or not row["answer"].strip():
            raise DataError(f"{place}: the question or the answer is empty")
        questions.append(Question(row["question"], row["answer"], told))
    return Library(source, tuple(questions), tuple(passages.values()))


def _call(place: str, row: Mapping[str, Any]) -> RecordedCall:
    """One user message, one answer. What else a chat can have isn't served, and isn't in the published file."""
    request, choices = row["request"], row["choices"]
    check_fields(f"{place}: request", request, {"messages": list, "max_tokens": int})
    messages = request["messages"]
    if len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
        raise DataError(f"{place}: one message of the user's is needed, not {messages!r:.80}")
    check_fields(f"{place}: message", messages[0], {"content": str})
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise DataError(f"{place}: one choice is needed, not {choices!r:.80}")
    check_fields(f"{place}: choice", choices[0], {"text": str})
    if not choices[0]["text"]:
        raise DataError(f"{place}: the recorded text is empty; take the line out")
    if request["max_tokens"] < 1:
        raise DataError(f"{place}: max_tokens={request['max_tokens']}; it must be 1 or more")
    return RecordedCall(messages[0]["content"], choices[0]["text"], request["max_tokens"])
