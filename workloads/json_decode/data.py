"""City pages, names, schemas and functions, from files or our sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, as_text, jsonl_rows
from workloads.json_decode.sample import SAMPLE_NAMES, sample_functions, sample_pages, sample_schemas
from workloads.json_decode.score import RightCall
from workloads.sources import Files, find_files, sample_source

CITIES, NAMES, SCHEMAS = "cities.jsonl", "json_jump_forward_character_names.txt", "maskbench_a.jsonl"
PARTS = ("simple_python", "multiple", "live_simple", "parallel", "parallel_multiple")
"""Of BFCL: one function, one of several, users' questions, several calls of one, several calls of several."""
NO_VALUES: tuple[Any, ...] = ("", [])
"""Right where BFCL names no value (two questions of live_simple, about arguments that are lists): nothing, or none."""
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None, "int": "integer", "bool": "boolean"}
"""Of BFCL's, which are Python's: JSON schema's."""


class Task(NamedTuple):
    name: str
    schema: str
    """JSON text."""
    instance: str
    """A value that the schema accepts, as JSON."""


class Question(NamedTuple):
    asked: str
    system: str
    """A system message before it, or nothing."""
    tools: tuple[Mapping[str, Any], ...]
    """name, description, parameters (a JSON schema)."""
    expected: tuple[RightCall, ...]


def load_pages(data_dir: str | None) -> tuple[DataSource, list[str]]:
    """Raises DataError."""
    found = find_files("wikipedia_cities", data_dir, (CITIES,))
    if not isinstance(found, Files):
        return sample_source("Wikipedia's pages of cities", sample_pages(), found.why), sample_pages()
    rows = jsonl_rows(str(found.paths[CITIES]), found.contents[CITIES], {"text": str})
    return found.source, [row["text"] for _, row in rows]


def load_names(data_dir: str | None) -> tuple[DataSource, list[str]]:
    """Raises DataError."""
    found = find_files("sglang_bench_misc", data_dir, (NAMES,), also={NAMES: ("dataset.txt",)})
    if not isinstance(found, Files):
        return sample_source("the names of json_jump_forward", SAMPLE_NAMES, found.why), list(SAMPLE_NAMES)
    lines = as_text(str(found.paths[NAMES]), found.contents[NAMES]).split("\n")
    return found.source, [line.strip() for line in lines if line.strip()]


def load_schemas(data_dir: str | None, max_bytes: int) -> tuple[DataSource, list[Task]]:
    """Those of at most so many bytes that have a valid instance. Raises DataError."""
    found = find_files("maskbench", data_dir, (SCHEMAS,))
    if not isinstance(found, Files):
        tasks = [Task(name, json.dumps(schema), json.dumps(value)) for name, schema, value in sample_schemas()]
        return sample_source("MaskBench", tasks, found.why), tasks
    tasks = []
    fields = {"id": str, "tests": list}
    for place, row in jsonl_rows(str(found.paths[SCHEMAS]), found.contents[SCHEMAS], fields):
        if "schema" not in row:
            raise DataError(f"{place}: no field 'schema'; get the file again")
        text = json.dumps(row["schema"])
        try:
            valid = [json.dumps(test["data"]) for test in row["tests"] if test["valid"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{place}: its tests have another form ({error!r}); get the file again") from error
        if valid and len(text.encode()) <= max_bytes:
            tasks.append(Task(row["id"], text, min(valid, key=len)))
    return found.source, tasks


def load_questions(data_dir: str | None, part: str) -> tuple[DataSource, list[Question]]:
    """BFCL's questions, functions and right calls. Raises DataError."""
    names = f"{part}.jsonl", f"answers_{part}.jsonl"
    found = find_files("bfcl", data_dir, names)
    if not isinstance(found, Files):
        made = [
            Question(asked, "", (tool,), (RightCall(tool["name"], allowed),))
            for asked, tool, allowed in sample_functions()
        ]
        return sample_source("BFCL", made, found.why), made
    questions, answers = (
        dict(_by_id(str(found.paths[name]), found.contents[name], fields))
        for name, fields in zip(names, ({"question": list, "function": list}, {"ground_truth": list}), strict=True)
    )
    read = []
    for key, (place, row) in questions.items():
        if key not in answers:
            raise DataError(f"{place}: {found.paths[names[1]]} has no answer to {key!r}; get both files again")
        try:
            read.append(_question(row, answers[key][1]))
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError(f"{place}: its question, function or answer has another form ({error!r})") from error
    return found.source, read


def _by_id(name: str, content: bytes, fields: Mapping[str, type]) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    for place, row in jsonl_rows(name, content, {"id": str, **fields}):
        yield row["id"], (place, row)


def _question(row: Mapping[str, Any], answer: Mapping[str, Any]) -> Question:
    (messages,) = row["question"]
    said = {message["role"]: str(message["content"]) for message in messages}
    tools = tuple(
        {"name": told["name"], "description": told["description"], "parameters": as_schema(told["parameters"])}
        for told in row["function"]
    )
    expected = tuple(
        RightCall(name, {argument: values or NO_VALUES for argument, values in allowed.items()})
        for call in answer["ground_truth"]
        for name, allowed in call.items()
    )
    if len(said) != len(messages) or not said.keys() <= {"system", "user"}:
        raise ValueError(f"messages of {', '.join(message['role'] for message in messages)}")
    return Question(said["user"], said.get("system", ""), tools, expected)


def as_schema(parameters: Any) -> Any:
    """A description of Python's types as a JSON schema."""
    if isinstance(parameters, list):
        return [as_schema(item) for item in parameters]
    if not isinstance(parameters, dict):
        return parameters
    found: dict[str, Any] = {}
    for key, value in parameters.items():
        if key == "type" and isinstance(value, str):
            if (known := _TYPES.get(value.lower(), value.lower())) is not None:
                found[key] = known
        elif key == "properties":
            found[key] = {name: as_schema(one) for name, one in value.items()}
        elif key in ("items", "required", "enum", "description"):
            found[key] = as_schema(value) if key == "items" else value
    return found
