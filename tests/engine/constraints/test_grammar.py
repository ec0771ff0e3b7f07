"""What can be asked for, as plain data."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ConfigDict

from engine.constraints import Grammar, ToolChoice, any_json, choices, json_schema, regex, tools
from engine.request import RequestError


class Street(BaseModel):
    name: str


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    street: Street


def test_a_pydantic_class_allows_its_own_properties_alone() -> None:
    schema = json.loads(json_schema(Open).text)
    assert schema["additionalProperties"] is True
    assert schema["$defs"]["Street"]["additionalProperties"] is False


def test_a_dict_and_its_text_are_taken_as_they_are() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert json.loads(json_schema(schema).text) == schema
    assert json_schema(json.dumps(schema, indent=2)) == json_schema(schema)
    assert list(json.loads(json_schema(schema).text)["properties"]) == ["b", "a"]


def test_equal_content_has_one_digest_and_survives_the_log() -> None:
    one, other = regex("a+"), choices(["a+"])
    assert one.digest == regex("a+").digest != other.digest
    for grammar in (one, other, any_json()):
        assert Grammar.from_data(json.loads(json.dumps(grammar.as_data()))) == grammar


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: regex(""), "isn't empty"),
        (lambda: regex("\ud800"), "half a character"),
        (lambda: json_schema("{"), "isn't JSON"),
        (lambda: json_schema([1]), "an object or a boolean"),  # type: ignore[arg-type]
        (lambda: json_schema(int), "pydantic"),
        (lambda: json_schema({"maximum": float("nan")}), "can't be written as JSON"),
        (lambda: choices([]), "a list of texts"),
        (lambda: choices("yes"), "a list of texts"),
        (lambda: tools({}, begin="<", end=">"), "at least one tool"),
        (lambda: tools({"f": {}}, begin="", end="", choice=ToolChoice.AUTO), "tells the two apart"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make, says) -> None:
    with pytest.raises(RequestError, match=says):
        make()
