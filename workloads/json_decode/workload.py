"""JSON decoding as a workload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.json_decode.data import PARTS, Question, load_names, load_pages, load_questions, load_schemas
from workloads.json_decode.patterns import CHARACTER, CITY, FIELDS, MAX_TOKENS
from workloads.json_decode.program import fields, function_call, page_prompt, record, schema, schema_prompt
from workloads.json_decode.sample import sample_pages
from workloads.json_decode.score import HAS_JSONSCHEMA, RightCall, accepts, right_calls
from workloads.lengths import shortened
from workloads.room import output_tokens
from workloads.sources import need_at_least, need_one_of

T = TypeVar("T")
TOOL_FORMAT_TOKENS = 400
"""That the roles and the words around the tools' descriptions take, at most."""
KINDS = ("fields", "character", "city", "schema", "functions")


class JsonDecode(Workload):
    """kind=fields: five regexes over a city's page; character and city: one regex a record; schema: JSON schemas;
    functions: a tool's call. Grammars give outputs their shape whatever the weights say, so they are free."""

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        kind: str = "fields",
        n_items: int | None = 20,
        page_tokens: int = 3000,
        max_tokens: int = MAX_TOKENS,
        max_schema_bytes: int = 2000,
        part: str = "simple_python",
        max_context_tokens: int | None = None,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("kind", kind, KINDS)
        need_at_least(n_items=(n_items, 1), page_tokens=(page_tokens, 1), max_tokens=(max_tokens, 1))
        need_at_least(max_schema_bytes=(max_schema_bytes, 2), max_context_tokens=(max_context_tokens, 1))
        need_one_of("part", part, PARTS)
        self.data_dir = data_dir
        self.kind = kind
        self.n_items = n_items
        self.page_tokens = page_tokens
        self.max_tokens = max_tokens
        self.max_schema_bytes = max_schema_bytes
        self.part = part
        self.max_context_tokens = max_context_tokens
        self.asked_outputs = outputs
        self.served_outputs: Sequence[Outputs] = ("free", "recorded") if kind == "schema" else ("free",)
        self._jobs: list[Job] = []
        self._expected: dict[str, Sequence[RightCall]] = {}

    def load(self) -> None:
        self._expected = {}
        load = {
            "fields": self._load_fields,
            "character": self._load_character,
            "city": self._load_city,
            "schema": self._load_schema,
            "functions": self._load_functions,
        }
        self._jobs = load[self.kind]()
        if not self._jobs:
            raise DataError(f"{self.data.path or self.kind}: nothing in it to ask for; get the files again")

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Two short pages of our own, in a namespace of their own: the grammar is compiled then."""
        if self.kind == "fields":
            pages = [f"Warm-up. {page[:300]}" for page in sample_pages()[:2]]
            return [
                Job(program=fields, args={"page": page}, name=f"warmup/{i}", namespace="warmup")
                for i, page in enumerate(pages)
            ]
        if self.kind not in ("character", "city"):
            return []
        pattern = CHARACTER if self.kind == "character" else CITY
        args = {"prompt": "Warm-up.\n", "pattern": pattern, "max_tokens": self.max_tokens}
        return [Job(program=record, args=args, name="warmup/0", namespace="warmup")]

    def expected(self, name: str) -> Sequence[RightCall]:
        """The calls that the job of that name should make (kind=functions)."""
        return self._expected[name]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the outputs that are whole and of the asked shape (functions: that call what is right); a failed one
        counts as wrong."""
        if not finished:
            return None
        right = sum(run.status == "done" and self._is_right(run) for run in finished)
        name = "right calls" if self.kind == "functions" else "valid"
        if self.kind == "schema" and not HAS_JSONSCHEMA:
            name = "JSON (jsonschema isn't installed)"
        return Score(name, right / len(finished), len(finished))

    def _is_right(self, run: ProgramRun) -> bool:
        if self.kind == "fields":
            return all(re.fullmatch(field.pattern, run.state[field.name]) for field in FIELDS)
        if self.kind in ("character", "city"):
            pattern = CHARACTER if self.kind == "character" else CITY
            return re.fullmatch(pattern, run.state["record"]) is not None
        if self.kind == "schema":
            return accepts(run.args["json_schema"], run.state["value"])
        return right_calls(run.state.ret_value or (), self.expected(run.name))

    def _load_fields(self) -> list[Job]:
        self.data, pages = load_pages(self.data_dir)
        written = sum(field.max_tokens + self.count_tokens(f'  "{field.name}": \n') for field in FIELDS)
        n = self._page_tokens(written + self.count_tokens("{\n}\n"))
        return [
            Job(program=fields, args={"page": shortened(page, n, self.count_tokens)}, name=f"json_decode/{i}")
            for i, page in enumerate(pages[: self.n_items])
        ]

    def _load_character(self) -> list[Job]:
        self.data, names = load_names(self.data_dir)
        prompts = [
            f"{name} is a person in the Harry Potter books. The facts about this person as JSON:\n" for name in names
        ]
        return [self._record(f"json_decode/{i}", one, CHARACTER) for i, one in enumerate(prompts[: self.n_items])]

    def _load_city(self) -> list[Job]:
        self.data, pages = load_pages(self.data_dir)
        n = self._page_tokens(self.max_tokens)
        prompts = [page_prompt(shortened(page, n, self.count_tokens)) for page in pages[: self.n_items]]
        return [self._record(f"json_decode/{i}", prompt, CITY) for i, prompt in enumerate(prompts)]

    def _load_schema(self) -> list[Job]:
        self.data, tasks = load_schemas(self.data_dir, self.max_schema_bytes)
        fitting = self._fitting(tasks, lambda task: self.count_tokens(schema_prompt(task.schema)))
        return [
            Job(
                program=schema,
                args={"json_schema": task.schema, "max_tokens": self.max_tokens, "instance": task.instance},
                name=f"json_decode/{task.name}",
                outputs=self.outputs,
            )
            for task in fitting
        ]

    def _load_functions(self) -> list[Job]:
        self.data, questions = load_questions(self.data_dir, self.part)
        jobs = []
        for i, one in enumerate(self._fitting(questions, self._question_tokens)):
            name = f"json_decode/{i}"
            args = {
                "question": one.asked,
                "system": one.system,
                "tools": list(one.tools),
                "max_tokens": self.max_tokens,
            }
            jobs.append(Job(program=function_call, args=args, name=name))
            self._expected[name] = one.expected
        return jobs

    def _record(self, name: str, prompt: str, pattern: str) -> Job:
        n = output_tokens(self.max_tokens, self.max_context_tokens, self.count_tokens(prompt))
        return Job(program=record, args={"prompt": prompt, "pattern": pattern, "max_tokens": n}, name=name)

    def _page_tokens(self, written: int) -> int:
        """Of a page, where so many tokens come behind it."""
        limit = self.max_context_tokens
        if limit is None:
            return self.page_tokens
        return output_tokens(self.page_tokens, limit, self.count_tokens(page_prompt("")) + written)

    def _question_tokens(self, question: Question) -> int:
        return self.count_tokens(question.asked + question.system + json.dumps(question.tools)) + TOOL_FORMAT_TOKENS

    def _fitting(self, items: Sequence[T], tokens: Callable[[T], int]) -> Sequence[T]:
        """The first `n_items` that fit with `max_tokens` of output; the report says how many are left out."""
        limit = self.max_context_tokens
        if limit is None:
            return items[: self.n_items]
        fitting: list[T] = []
        passed_over = 0
        for item in items:
            if len(fitting) == self.n_items:
                break
            if tokens(item) + self.max_tokens <= limit:
                fitting.append(item)
            else:
                passed_over += 1
        if not fitting:
            raise DataError(f"max_context_tokens={limit} has no room for any of {len(items)} prompts; give more")
        if passed_over:
            note = f"{passed_over} prompts longer than {limit} tokens with their outputs were passed over"
            self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, note))))
        return fitting
