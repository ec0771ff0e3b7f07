"""City pages, names, schemas and functions, from files or our sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, as_text, check_fields, jsonl_rows
from workloads.json_decode.sample import SAMPLE_NAMES, sample_functions, sample_pages, sample_schemas
from workloads.sources import Files, find_files, sample_source

CITIES, NAMES, SCHEMAS = "cities.jsonl", "json_jump_forward_character_names.txt", "maskbench_a.jsonl"
FUNCTIONS, ANSWERS = "simple_python.jsonl", "answers_simple_python.jsonl"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None, "int": "integer", "bool": "boolean"}
"""Of BFCL's, which are Python's: JSON schema's."""


class Task(NamedTuple):
    name: str
    schema: str
    """JSON text."""
    instance: str
    """A value that the schema accepts, as JSON."""


class Function(NamedTuple):
    question: str
    tool: Mapping[str, Any]
    """name, description, parameters (a JSON schema)."""
    allowed: Mapping[str, list[Any]]
    """Argument -> the values that are right; "" among them: it may be missing."""


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
        valid = [json.dumps(test["data"]) for test in row["tests"] if test.get("valid")]
        if valid and len(text.encode()) <= max_bytes:
            tasks.append(Task(row["id"], text, min(valid, key=len)))
    return found.source, tasks


def load_functions(data_dir: str | None) -> tuple[DataSource, list[Function]]:
    """BFCL's questions with one Python function each. Raises DataError."""
    found = find_files("bfcl", data_dir, (FUNCTIONS, ANSWERS))
    if not isinstance(found, Files):
        made = [Function(*row) for row in sample_functions()]
        return sample_source("BFCL", made, found.why), made
    answers = {
        row["id"]: row["ground_truth"][0]
        for _, row in jsonl_rows(str(found.paths[ANSWERS]), found.contents[ANSWERS], {"id": str, "ground_truth": list})
    }
    functions = []
    fields = {"id": str, "question": list, "function": list}
    for place, row in jsonl_rows(str(found.paths[FUNCTIONS]), found.contents[FUNCTIONS], fields):
        check_fields(place, answers, {row["id"]: dict})
        try:
            ((_, allowed),) = answers[row["id"]].items()
            told = row["function"][0]
            tool = {
                "name": told["name"],
                "description": told["description"],
                "parameters": as_schema(told["parameters"]),
            }
            functions.append(Function(row["question"][0][0]["content"], tool, allowed))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError(f"{place}: its question or function has another form ({error!r})") from error
    return found.source, functions


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
