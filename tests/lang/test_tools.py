"""Tools that the model may ask for, and what it asks."""

import json

import pytest
from pydantic import BaseModel

import lang as sgl
from lang.backends.mock import MockBackend
from lang.tools import tool_of


def weather(city: str, days: int = 1) -> str:
    """The weather of the next days."""
    return f"{city}: rain for {days} days"


class Weather(BaseModel):
    """The weather."""

    city: str


def test_a_function_is_a_tool():
    tool = tool_of(weather)
    assert (tool.name, tool.description) == ("weather", "The weather of the next days.")
    schema = json.loads(tool.parameters)
    assert schema["required"] == ["city"]
    assert schema["properties"]["days"]["type"] == "integer"
    assert schema["additionalProperties"] is False


def test_a_class_a_dict_and_what_openai_takes():
    assert tool_of(Weather).name == "Weather"
    inner = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    assert (
        tool_of(inner)
        == tool_of({"type": "function", "function": inner})
        == sgl.Tool("f", "does", '{"type": "object"}')
    )
    assert tool_of(tool_of(inner)) == tool_of(inner)
    assert tool_of(tool_of(inner).as_data()) == tool_of(inner)


def test_a_tool_without_arguments_takes_none():
    assert json.loads(tool_of({"name": "f"}).parameters)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("given", "message"),
    [({"description": "x"}, "has no name"), ("weather", "is no tool"), (print, "type hint|no tool")],
)
def test_what_is_no_tool(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tool_of(given)


def test_an_argument_needs_a_type():
    def f(x):
        pass

    with pytest.raises(TypeError, match="its argument 'x' needs a name and a type hint"):
        tool_of(f)


def test_calls_come_back_as_data_and_the_program_does_them():
    @sgl.function
    def program(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", tools=[weather]))
        for call in s.tool_calls("answer"):
            s += sgl.user(f"{call.name} says: {weather(**call.arguments)}")
        s += sgl.assistant(sgl.gen("final"))

    call = sgl.ToolCall("1", "weather", {"city": "Oslo", "days": 2})
    backend = MockBackend(lambda _: "Let me see.", calls=lambda _: [call])
    state = program.run("Rain?", backend=backend)
    assert state.tool_calls("answer") == (call,)
    assert state.tool_calls("final") == (), "no tools were offered there"
    assert "weather says: Oslo: rain for 2 days" in state.text()
