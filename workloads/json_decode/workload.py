"""JSON decoding as a workload."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.json_decode.data import load_functions, load_names, load_pages, load_schemas
from workloads.json_decode.patterns import CHARACTER, CITY, FIELDS, MAX_TOKENS
from workloads.json_decode.program import fields, function_call, record, schema
from workloads.json_decode.sample import sample_pages
from workloads.lengths import shortened
from workloads.sources import need_at_least, need_one_of

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
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("kind", kind, KINDS)
        need_at_least(n_items=(n_items, 1), page_tokens=(page_tokens, 1), max_tokens=(max_tokens, 1))
        need_at_least(max_schema_bytes=(max_schema_bytes, 2))
        self.data_dir = data_dir
        self.kind = kind
        self.n_items = n_items
        self.page_tokens = page_tokens
        self.max_tokens = max_tokens
        self.max_schema_bytes = max_schema_bytes
        self.asked_outputs = outputs
        self.served_outputs: Sequence[Outputs] = ("free", "recorded") if kind == "schema" else ("free",)
        self._jobs: list[Job] = []
        self._allowed: dict[str, Mapping[str, list[Any]]] = {}
        self._names: dict[str, str] = {}

    def load(self) -> None:
        self._jobs, self._allowed, self._names = [], {}, {}
        getattr(self, f"_load_{self.kind}")()
        self._jobs = self._jobs[: self.n_items]

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

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the outputs that are whole and of the asked shape (functions: that call what is right); a failed one
        counts as wrong."""
        if not finished:
            return None
        right = sum(run.status == "done" and self._is_right(run) for run in finished)
        name = "right calls" if self.kind == "functions" else "valid"
        return Score(name, right / len(finished), len(finished))

    def _is_right(self, run: ProgramRun) -> bool:
        if self.kind == "fields":
            return all(re.fullmatch(field.pattern, run.state[field.name]) for field in FIELDS)
        if self.kind in ("character", "city"):
            pattern = CHARACTER if self.kind == "character" else CITY
            return re.fullmatch(pattern, run.state["record"]) is not None
        if self.kind == "schema":
            return accepts(run.args["json_schema"], run.state["value"])
        calls: Sequence[Any] = run.state.ret_value or ()
        return len(calls) == 1 and right_call(calls[0], self._names[run.name], self._allowed[run.name])

    def _load_fields(self) -> None:
        self.data, pages = load_pages(self.data_dir)
        for i, page in enumerate(pages):
            args = {"page": shortened(page, self.page_tokens, self.count_tokens)}
            self._jobs.append(Job(program=fields, args=args, name=f"json_decode/{i}"))

    def _load_character(self) -> None:
        self.data, names = load_names(self.data_dir)
        for i, name in enumerate(names):
            prompt = f"{name} is a person in the Harry Potter books. The facts about this person as JSON:\n"
            self._jobs.append(self._record(f"json_decode/{i}", prompt, CHARACTER))

    def _load_city(self) -> None:
        self.data, pages = load_pages(self.data_dir)
        for i, page in enumerate(pages):
            cut = shortened(page, self.page_tokens, self.count_tokens)
            prompt = f"Here is an encyclopedia's page about a city.\n{cut}\nThe city as JSON:\n"
            self._jobs.append(self._record(f"json_decode/{i}", prompt, CITY))

    def _load_schema(self) -> None:
        self.data, tasks = load_schemas(self.data_dir, self.max_schema_bytes)
        for task in tasks[: self.n_items]:
            args = {"json_schema": task.schema, "max_tokens": self.max_tokens, "instance": task.instance}
            self._jobs.append(Job(program=schema, args=args, name=f"json_decode/{task.name}", outputs=self.outputs))

    def _load_functions(self) -> None:
        self.data, functions = load_functions(self.data_dir)
        for i, (question, tool, allowed) in enumerate(functions):
            name = f"json_decode/{i}"
            args = {"question": question, "tools": [tool], "max_tokens": self.max_tokens}
            self._jobs.append(Job(program=function_call, args=args, name=name))
            self._allowed[name], self._names[name] = allowed, str(tool["name"])

    def _record(self, name: str, prompt: str, pattern: str) -> Job:
        args = {"prompt": prompt, "pattern": pattern, "max_tokens": self.max_tokens}
        return Job(program=record, args=args, name=name)


def accepts(schema_text: str, said: str) -> bool:
    """Whether the schema accepts what was said, by `jsonschema` where it is installed; else whether it is JSON."""
    try:
        value = json.loads(said)
    except ValueError:
        return False
    try:
        import jsonschema
    except ImportError:
        return True
    try:
        jsonschema.validate(value, json.loads(schema_text))
    except jsonschema.ValidationError:
        return False
    return True


def right_call(call: Any, name: str, allowed: Mapping[str, list[Any]]) -> bool:
    """BFCL's rule: the function's name, every argument one of the allowed values, none that isn't known, and only those
    missing that may be."""
    if call.name != name or any(argument not in allowed for argument in call.arguments):
        return False
    return all(
        call.arguments[argument] in values if argument in call.arguments else "" in values
        for argument, values in allowed.items()
    )
