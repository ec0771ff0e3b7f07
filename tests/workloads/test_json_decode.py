"""JSON decoding: its prompts and calls, every form of its data, what fits, the score, schemas that aren't served."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.tools import ToolCall
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.json_decode import JsonDecode
from workloads.json_decode import score as scoring
from workloads.json_decode.data import PARTS, as_schema
from workloads.json_decode.patterns import CHARACTER, CITY, FIELDS
from workloads.json_decode.score import RightCall, accepts, right_calls, same_value
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""
PAGE = "Oslo is the capital of Norway. It lies at the end of a fjord."
RECORD = {
    "name": ' "Oslo",',
    "country": '"Norway",',
    "latitude": "59.91,",
    "population": "709037,",
    "landmarks": '["Opera","Fram"]',
}
CITY_RECORD = """{
  "name": "Oslo",
  "country": "Norway",
  "latitude": 59.91,
  "population": 709037,
  "top 3 landmarks": ["Opera", "Fram", "Castle"]
}"""
WIDE = {"name": "wide", "description": "Draws.", "parameters": {"type": "dict", "properties": {"w": {"type": "float"}}}}
HIGH = {"name": "a.high", "description": "Lifts.", "parameters": {"type": "dict", "properties": {"h": {"type": "int"}}}}
QUESTIONS = [
    {"id": "q_0", "question": [[{"role": "user", "content": "How wide?"}]], "function": [WIDE]},
    {
        "id": "q_1",
        "question": [[{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Wide, then high."}]],
        "function": [WIDE, HIGH],
    },
]
ANSWERS = [
    {"id": "q_1", "ground_truth": [{"wide": {"w": [2.0]}}, {"a.high": {"h": [3, "three"]}}]},
    {"id": "q_0", "ground_truth": [{"wide": {"w": [1.5, ""]}}]},
]
SCHEMAS = [
    {
        "id": "one",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "tests": [{"valid": False, "data": 1}, {"valid": True, "data": {"a": 10}}, {"valid": True, "data": {"a": 1}}],
    },
    {"id": "never", "schema": {"type": "string"}, "tests": [{"valid": False, "data": 1}]},
    {"id": "two", "schema": {"type": "string", "maxLength": 3}, "tests": [{"valid": True, "data": "ab"}]},
]


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def write(folder: Path, files: Mapping[str, Any], packed: bool = False) -> str:
    """Lists as JSON lines, text as it is."""
    for name, content in files.items():
        path = folder / (name + ".gz" if packed else name)
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def bfcl(folder: Path, packed: bool = False, part: str = "multiple", **files: Any) -> str:
    given = {"questions": QUESTIONS, "answers": ANSWERS, **files}
    return write(
        folder, {f"bfcl/{part}.jsonl": given["questions"], f"bfcl/answers_{part}.jsonl": given["answers"]}, packed
    )


def loaded(outputs: str = "auto", count: Any = None, **settings: Any) -> JsonDecode:
    workload = JsonDecode(**settings)
    workload.count_tokens = count or (lambda text: len(text.split()))
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def fields_reply(prompt: str) -> str:
    asked = re.findall(r'"(\w+)": $', prompt)[0]
    return RECORD[asked].strip()


@pytest.mark.parametrize("packed", [False, True])
def test_the_launch_version_asks_for_five_fields_in_one_growing_prompt(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, {"wikipedia_cities/cities.jsonl": [{"title": "Oslo", "text": PAGE}]}, packed)
    workload = loaded(data_dir=folder)
    assert workload.data.origin == "files"
    backend = MockBackend(reply=fields_reply)
    runs = play(workload, backend)
    start = f"Here is an encyclopedia's page about a city.\n{PAGE}\nThe city as JSON:\n{{\n"
    assert [call.prompt for call in backend.log[:2]] == [
        start + '  "name": ',
        start + '  "name": "Oslo",\n  "country": ',
    ]
    assert backend.clock.steps == 5, "each field waits for the one before"
    written = runs[0].state.text().removeprefix(start.removesuffix("{\n"))
    assert json.loads(written)["landmarks"] == ["Opera", "Fram"]
    assert workload.score(runs) == ("valid", 1.0, 1)


def test_the_fields_have_the_papers_regexes_and_lengths() -> None:
    assert [(field.name, field.max_tokens) for field in FIELDS] == [
        ("name", 8),
        ("country", 8),
        ("latitude", 8),
        ("population", 8),
        ("landmarks", 24),
    ]
    by_name = {field.name: field.pattern for field in FIELDS}
    for name, said in RECORD.items():
        assert re.fullmatch(by_name[name], said.strip())
    assert not re.fullmatch(by_name["name"], '"Oslo"')
    assert not re.fullmatch(by_name["latitude"], "59.,")
    assert not re.fullmatch(by_name["landmarks"], "[]")


def test_a_field_that_was_cut_is_not_valid(tmp_path: Path) -> None:
    folder = write(tmp_path, {"wikipedia_cities/cities.jsonl": [{"text": PAGE}]})
    workload = loaded(data_dir=folder)
    runs = play(workload, EngineBackend(make_engine(EngineConfig(model="tiny", pool_tokens=4096))))
    state = runs[0].state
    whole = all(re.fullmatch(field.pattern, state[field.name]) for field in FIELDS)
    assert not whole, "random weights go on with a string till its limit"
    assert all(state.get_meta_info(field.name)["completion_tokens"] <= field.max_tokens for field in FIELDS)
    assert workload.score(runs) == ("valid", 0.0, 1)


def test_pages_are_cut_to_the_models_tokens(tmp_path: Path) -> None:
    folder = write(tmp_path, {"wikipedia_cities/cities.jsonl": [{"text": PAGE}] * 2})
    for kind, key in (("fields", "page"), ("city", "prompt")):
        jobs = loaded(data_dir=folder, kind=kind, page_tokens=4).jobs()
        assert len(jobs) == 2
        assert "Oslo is the capital" in jobs[0].args[key]
        assert "of Norway" not in jobs[0].args[key]


@pytest.mark.parametrize("packed", [False, True])
def test_a_character_is_one_record_of_one_regex(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, {"sglang_bench_misc/json_jump_forward_character_names.txt": "Ann Ash\n\nBo Elm\n"}, packed)
    workload = loaded(kind="character", data_dir=folder)
    assert [job.args["prompt"] for job in workload.jobs()] == [
        f"{name} is a person in the Harry Potter books. The facts about this person as JSON:\n"
        for name in ("Ann Ash", "Bo Elm")
    ]
    assert all(job.args["pattern"] == CHARACTER and job.args["max_tokens"] == 256 for job in workload.jobs())


def test_a_city_is_one_record_and_scored_by_its_regex(tmp_path: Path) -> None:
    folder = write(tmp_path, {"wikipedia_cities/cities.jsonl": [{"text": PAGE}]})
    workload = loaded(kind="city", data_dir=folder)
    (job,) = workload.jobs()
    assert job.args["prompt"] == f"Here is an encyclopedia's page about a city.\n{PAGE}\nThe city as JSON:\n"
    assert job.args["pattern"] == CITY
    assert workload.score(play(workload, MockBackend(reply=lambda _: CITY_RECORD))) == ("valid", 1.0, 1)
    wrong = play(workload, MockBackend(reply=lambda _: CITY_RECORD.replace("59.91", '"north"')), may_fail=True)
    assert wrong[0].status == "failed"
    assert workload.score(wrong) == ("valid", 0.0, 1)
    assert workload.score([]) is None


@pytest.mark.parametrize("packed", [False, True])
def test_schemas_with_a_valid_instance_are_asked_and_the_shortest_is_recorded(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, {"maskbench/maskbench_a.jsonl": SCHEMAS}, packed)
    workload = loaded("recorded", kind="schema", data_dir=folder)
    one, two = workload.jobs()
    assert (one.name, two.name) == ("json_decode/one", "json_decode/two")
    assert (one.args["instance"], two.args["instance"]) == ('{"a": 1}', '"ab"')
    backend = MockBackend()
    runs = play(workload, backend)
    assert backend.log[1].prompt == (
        'Write a JSON value that this JSON schema accepts.\nSchema: {"type": "string", "maxLength": 3}\nJSON: '
    )
    assert [run.state["value"] for run in runs] == ['{"a": 1}', '"ab"']
    assert workload.score(runs) == ("valid", 1.0, 2)
    few = loaded(kind="schema", data_dir=folder, max_schema_bytes=45)
    assert [job.name for job in few.jobs()] == ["json_decode/two"]


def test_recorded_instances_come_out_of_the_engine(tmp_path: Path) -> None:
    folder = write(tmp_path, {"maskbench/maskbench_a.jsonl": SCHEMAS})
    workload = loaded("recorded", kind="schema", data_dir=folder)
    runs = play(workload, EngineBackend(make_engine(EngineConfig(model="tiny", pool_tokens=4096))))
    assert [run.state["value"] for run in runs] == [job.args["instance"] for job in workload.jobs()]
    assert workload.score(runs) == ("valid", 1.0, 2)


def test_a_schema_that_is_not_served_fails_alone_and_counts_as_wrong(tmp_path: Path) -> None:
    odd = {"id": "odd", "schema": {"not": {"type": "string"}}, "tests": [{"valid": True, "data": 1}]}
    folder = write(tmp_path, {"maskbench/maskbench_a.jsonl": [odd, SCHEMAS[2]]})
    workload = loaded(kind="schema", data_dir=folder, max_tokens=40)
    backend = EngineBackend(make_engine(EngineConfig(model="tiny", pool_tokens=4096)))
    refused, served = play(workload, backend, may_fail=True)
    assert refused.status == "failed"
    assert "not served" in str(refused.error) or "can't be served" in str(refused.error)
    assert served.status == "done"
    assert workload.score([refused, served]) == ("valid", 0.5, 2)


def test_values_are_judged_by_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = '{"type": "object", "required": ["a"]}'
    assert accepts(schema, '{"a": 1}')
    assert not accepts(schema, "{}")
    assert not accepts(schema, '{"a": 1')
    assert not accepts(schema, "")
    monkeypatch.setattr(scoring, "HAS_JSONSCHEMA", False)
    assert accepts(schema, "{}")
    assert not accepts(schema, "{")


@pytest.mark.parametrize("packed", [False, True])
def test_functions_are_offered_as_tools_with_json_schemas(tmp_path: Path, packed: bool) -> None:
    workload = loaded(kind="functions", part="multiple", data_dir=bfcl(tmp_path, packed))
    first, second = workload.jobs()
    assert first.args["tools"] == [
        {
            "name": "wide",
            "description": "Draws.",
            "parameters": {"type": "object", "properties": {"w": {"type": "number"}}},
        }
    ]
    assert [tool["name"] for tool in second.args["tools"]] == ["wide", "a.high"]
    assert (first.args["question"], first.args["system"]) == ("How wide?", "")
    assert (second.args["question"], second.args["system"]) == ("Wide, then high.", "Be exact.")
    backend = MockBackend(calls=lambda _: [ToolCall("1", "wide", {"w": 1.5})])
    runs = play(workload, backend)
    assert backend.log[1].prompt == "### system\nBe exact.\n\n### user\nWide, then high.\n\n### assistant\n"
    assert workload.score(runs) == ("right calls", 0.5, 2)


def test_all_calls_must_be_right_in_any_order(tmp_path: Path) -> None:
    workload = loaded(kind="functions", part="multiple", data_dir=bfcl(tmp_path))
    wide, high = ToolCall("1", "wide", {"w": 2}), ToolCall("2", "a.high", {"h": "Three"})
    for calls, share in (([high, wide], 1.0), ([wide], 0.5), ([wide, wide], 0.5), ([wide, high, high], 0.5)):
        backend = MockBackend(
            calls=lambda prompt, calls=calls: calls if "then" in prompt else [ToolCall("1", "wide", {})]  # type: ignore[misc]
        )
        assert workload.score(play(workload, backend)) == ("right calls", share, 2)


def test_an_argument_without_right_values_may_be_missing_or_empty(tmp_path: Path) -> None:
    answers = [ANSWERS[0], {"id": "q_0", "ground_truth": [{"wide": {"w": [1.5], "marks": []}}]}]
    workload = loaded(kind="functions", part="multiple", data_dir=bfcl(tmp_path, answers=answers))
    expected = workload.expected("json_decode/0")
    for marks, right in (({}, True), ({"marks": []}, True), ({"marks": ["x"]}, False)):
        assert right_calls([ToolCall("1", "wide", {"w": 1.5, **marks})], expected) is right


def test_a_call_does_not_take_the_only_one_that_fits_another() -> None:
    either, other = RightCall("f", {"a": [1, 2]}), RightCall("f", {"a": [1]})
    one, two = ToolCall("1", "f", {"a": 1}), ToolCall("2", "f", {"a": 2})
    assert right_calls([one, two], [either, other])
    assert right_calls([two, one], [other, either])
    assert not right_calls([two, two], [either, other])


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"a": 1}, True),
        ({"a": 1.0}, True),
        ({"a": 1, "b": "north-west"}, True),
        ({"a": 2}, False),
        ({"a": True}, False),
        ({"b": "North West"}, False),
        ({"a": 1, "c": 0}, False),
        ({"a": 1, "b": "south"}, False),
    ],
)
def test_bfcls_rule_for_arguments(arguments: dict[str, Any], right: bool) -> None:
    expected = RightCall("f", {"a": [1], "b": ["North West", ""]})
    assert right_calls([ToolCall("1", "f", arguments)], [expected]) is right
    assert right_calls([ToolCall("1", "g", {"a": 1})], [expected]) is False
    assert right_calls([], [expected]) is False


def test_values_inside_lists_and_objects_are_compared_by_the_same_rule() -> None:
    assert same_value(["New York", 2], ["new york", 2.0])
    assert not same_value(["a"], ["a", "a"])
    assert same_value({"from": "A"}, {"from": ["a", "b"], "to": [""]})
    assert not same_value({"from": "A", "via": "c"}, {"from": ["a"]})
    assert not same_value({}, {"from": ["a"]})
    assert not same_value("1", 1)
    assert same_value(None, None)


def test_pythons_types_become_json_schemas() -> None:
    parameters = {
        "type": "dict",
        "properties": {
            "type": {"type": "string", "enum": ["a"]},
            "many": {"type": "tuple", "items": {"type": "float"}},
            "free": {"type": "any", "default": 3},
        },
        "required": ["type"],
    }
    assert as_schema(parameters) == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["a"]},
            "many": {"type": "array", "items": {"type": "number"}},
            "free": {},
        },
        "required": ["type"],
    }


@pytest.mark.parametrize(
    ("kind", "limit"), [("fields", 260), ("fields", 400), ("city", 200), ("character", 90), ("schema", 250)]
)
def test_prompt_and_output_end_within_the_context_that_is_asked_for(kind: str, limit: int) -> None:
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    workload = loaded(
        count=lambda text: len(engine.tokenizer.encode(text)),
        kind=kind,
        n_items=2,
        max_tokens=60,
        max_context_tokens=limit,
    )
    for run in play(workload, EngineBackend(engine)):
        assert run.status == "done", run.error
        assert run.calls
        for call in run.calls:
            assert call.meta["prompt_tokens"] + call.meta["completion_tokens"] <= limit


def test_what_does_not_fit_is_passed_over_and_told(tmp_path: Path) -> None:
    folder = write(tmp_path, {"maskbench/maskbench_a.jsonl": SCHEMAS})
    workload = loaded(kind="schema", data_dir=folder, count=len, max_tokens=60, max_context_tokens=180)
    assert [job.name for job in workload.jobs()] == ["json_decode/two"]
    assert "1 prompts longer than 180 tokens with their outputs were passed over" in workload.data.note
    with pytest.raises(DataError, match="max_context_tokens=20 has no room for any of 2 prompts; give more"):
        loaded(kind="schema", data_dir=folder, max_context_tokens=20)
    with pytest.raises(DataError, match="max_context_tokens=460 has no room for any of 2 prompts"):
        loaded(kind="functions", part="multiple", data_dir=bfcl(tmp_path), max_tokens=60, max_context_tokens=460)
    with pytest.raises(DataError, match="max_context_tokens=50 leaves no room"):
        loaded(max_context_tokens=50)


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"wikipedia_cities/cities.jsonl": '{"text": "a"}\n{"text": 1}\n'}, {}, "line 2: field 'text' is int"),
        ({"wikipedia_cities/other": ""}, {}, r"no cities\.jsonl or cities\.jsonl\.gz in"),
        ({"wikipedia_cities/cities.jsonl": ""}, {}, "nothing in it to ask for"),
        (
            {"sglang_bench_misc/other": ""},
            {"kind": "character"},
            r"no json_jump_forward_character_names\.txt or .* or dataset\.txt",
        ),
        ({"maskbench/maskbench_a.jsonl": "{}\nno"}, {"kind": "schema"}, "line 1: no field 'id'"),
        ({"maskbench/maskbench_a.jsonl": [{"id": "a", "tests": []}]}, {"kind": "schema"}, "line 1: no field 'schema'"),
        (
            {"maskbench/maskbench_a.jsonl": [{"id": "a", "schema": {}, "tests": [1]}]},
            {"kind": "schema"},
            "line 1: its tests have another form",
        ),
        (
            {"bfcl/simple_python.jsonl": QUESTIONS, "bfcl/answers_simple_python.jsonl": ANSWERS[:1]},
            {"kind": "functions"},
            r"simple_python\.jsonl, line 1: .*answers_simple_python\.jsonl has no answer to 'q_0'",
        ),
        (
            {"bfcl/parallel.jsonl": [{**QUESTIONS[0], "question": []}], "bfcl/answers_parallel.jsonl": ANSWERS},
            {"kind": "functions", "part": "parallel"},
            r"parallel\.jsonl, line 1: its question, function or answer has another form",
        ),
        ({"bfcl/parallel.jsonl": QUESTIONS}, {"kind": "functions", "part": "parallel"}, r"no answers_parallel\.jsonl"),
    ],
)
def test_broken_data_is_named_and_no_sample_taken(
    tmp_path: Path, files: Mapping[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loaded(data_dir=write(tmp_path, files), **settings)


@pytest.mark.parametrize("kind", ["fields", "character", "city", "schema", "functions"])
def test_the_sample_is_announced(kind: str) -> None:
    workload = loaded(kind=kind, n_items=None)
    assert workload.data.origin == "sample"
    assert "made by our own code, not" in workload.data.note
    assert len(workload.jobs()) >= 4
    for warm in workload.warmup():
        assert warm.namespace == "warmup"


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "xml"},
        {"n_items": 0},
        {"page_tokens": 0},
        {"max_tokens": 0},
        {"max_schema_bytes": 0},
        {"part": "java"},
        {"max_context_tokens": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("json_decode", settings)


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with wikipedia_cities/, maskbench/ and bfcl/")
    settings: dict[str, Any] = {"data_dir": REAL, "n_items": None}
    assert len(loaded(kind="character", **settings).jobs()) == 50
    assert len(loaded(kind="city", **settings).jobs()) == 22
    pages = loaded(kind="fields", **settings).jobs()
    assert all(1500 < len(job.args["page"].split()) <= 3000 for job in pages)
    schemas = loaded("recorded", kind="schema", **settings)
    assert len(schemas.jobs()) == 3483
    assert schemas.score(play(schemas, MockBackend())) == ("valid", 1.0, 3483)
    sizes = {part: len(loaded(kind="functions", part=part, **settings).jobs()) for part in PARTS}
    assert list(sizes.values()) == [400, 200, 258, 200, 200]


def test_a_model_that_calls_what_bfcl_expects_is_right_everywhere() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with bfcl/")
    for part in PARTS:
        workload = loaded(kind="functions", part=part, data_dir=REAL, n_items=None)
        for job in workload.jobs():
            expected = workload.expected(job.name)
            calls = [ToolCall("", one.name, _said(one.allowed)) for one in expected]
            assert right_calls(calls[::-1], expected), job.name
            assert not right_calls(calls[1:], expected)


def _said(allowed: Mapping[str, Any]) -> dict[str, Any]:
    """The first of each argument's right values."""
    return {name: _first(values[0]) for name, values in allowed.items() if values[0] != ""}


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return _said(value)
    return [_first(one) for one in value] if isinstance(value, list) else value
