"""The programs of the paper: as they stand, compiled, and compiled from a saved graph, they do the same."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import lang
from engine import EngineConfig, make_engine
from examples.programs import (
    chat,
    early_reads,
    hellaswag,
    image_questions,
    json_extraction,
    judge,
    mmlu,
    rag,
    react,
    skeleton,
    tree_of_thought,
)
from examples.programs.example import Example, Item, measured
from lang import passes
from lang.backends.base import Backend, Call, Tags
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.dtype import pattern_of
from lang.prompt import Prompt
from lang.sampling import Sampling
from workloads.mmlu.program import few_shot_mmlu

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        chat,
        early_reads,
        hellaswag,
        image_questions,
        json_extraction,
        judge,
        mmlu,
        rag,
        react,
        skeleton,
        tree_of_thought,
    )
}
EXAMPLES = {name: module.EXAMPLE for name, module in MODULES.items()}
EXAMPLES["the paper's mmlu"] = Example(
    few_shot_mmlu, items=[{**item, "max_tokens": 1} for item in mmlu.EXAMPLE.items], static=["max_tokens"]
)
ON_ENGINE = [name for name, example in EXAMPLES.items() if example.reply is None]

SHAPED: dict[str, Sequence[str]] = {
    react.ACTION: [*(f"Search[{page}]" for page in react.PAGES), "Lookup[mustard]", "Lookup[river]", "Finish[Dijon]"],
    pattern_of(int)[0]: ["1", "12", "-7", "42"],
    json_extraction.NAME: ['"Paris"', '"Lima"', '"Rome"'],
    json_extraction.NUMBER: ["2000000", "300000", "12345"],
    json_extraction.NAMES: ['["Louvre"]', '["Tower", "Bridge"]'],
    "[A-D][+-]?": ["A", "B+", "C-", "D"],
}
"""What the mock may say where a regex holds it."""
CITIES = [
    '{"continent": "Europe", "by_the_sea": false, "river": "Seine"}',
    '{"continent": "America", "by_the_sea": true, "river": "none"}',
]


class Hashing(MockBackend):
    """Says what the whole prompt decides, in the shape that is asked for, after a time that the prompt decides."""

    def __init__(self) -> None:
        super().__init__(
            logprobs=lambda prompt, choice: [-float(_hash(prompt + choice) % 97) for _ in choice.split()],
            steps_per_call=lambda prompt: 1 + _hash(prompt) % 4,
        )

    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        shapes = CITIES if sampling.json_schema is not None else SHAPED.get(sampling.regex or "")
        self._reply = lambda asked: shapes[_hash(asked) % len(shapes)] if shapes else _many_words(asked)
        return super().generate(name, prompt, sampling, tags)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _many_words(prompt: str) -> str:
    return " ".join(str(_hash(prompt + str(i)) % 1000) for i in range(20))


@pytest.fixture(scope="module")
def engine_backend() -> EngineBackend:
    return EngineBackend(make_engine(EngineConfig(model="tiny", device="cpu", dtype="float64", pool_tokens=16384)))


def seen(state: lang.ProgramState) -> dict[str, Any]:
    """All that a program's state shows."""
    problem = state.error()
    if problem is not None:
        raise problem
    names = sorted(state._variables)
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": {name: state[name] for name in names},
        "meta": {name: meta(state, name) for name in names},
        "returned": state.ret_value,
    }


def meta(state: lang.ProgramState, name: str) -> dict[str, Any] | None:
    """But for what depends on what ran before; None for a variable that no call made."""
    try:
        found = state.get_meta_info(name)
    except KeyError:
        return None
    return {key: to_9_digits(value) for key, value in found.items() if key != "cached_tokens"}


def to_9_digits(value: Any) -> Any:
    """What is in the cache decides which sums a score is made of, and so its last bits."""
    if isinstance(value, float):
        return round(value, 9)
    return [to_9_digits(one) for one in value] if isinstance(value, list | tuple) else value


def sampled(seed: int) -> dict[str, Any]:
    return {"temperature": 1.0, "seed": seed}


GREEDY: dict[str, Any] = {"temperature": 0}


EXACT = [passes.forced_text(), passes.common_calls(), passes.dead_code(), passes.prefetch()]


def but_for_calls_not_made(state: dict[str, Any]) -> dict[str, Any]:
    """Of what can only be said in one way no tokens are counted."""
    forced = {name for name, told in state["meta"].items() if told is not None and told.get("forced")}
    FORCED.update(forced)
    return {**state, "meta": {name: told for name, told in state["meta"].items() if name not in FORCED}}


FORCED: set[str] = set()
"""Variables of which that was seen."""


def assert_all_ways_are_one(example: Example, backend: Callable[[], Backend], item: Item, how: dict[str, Any]) -> None:
    eager = seen(example.program.run(**item, backend=backend(), **how))
    compiled = example.program.compile(static=example.static)
    assert seen(compiled.run(**item, backend=backend(), **how)) == eager
    optimised = example.program.compile(static=example.static, passes=EXACT)
    assert but_for_calls_not_made(seen(optimised.run(**item, backend=backend(), **how))) == but_for_calls_not_made(
        eager
    )
    loaded = example.from_json(item)
    assert seen(loaded.run(**example.open_arguments(item), backend=backend(), **how)) == eager


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_compiled_program_says_on_the_mock_what_it_says_as_it_stands(name: str) -> None:
    for item in EXAMPLES[name].items:
        assert_all_ways_are_one(EXAMPLES[name], Hashing, item, GREEDY)


@pytest.mark.parametrize("how", [GREEDY, sampled(7)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", ON_ENGINE)
def test_a_compiled_program_says_on_the_engine_what_it_says_as_it_stands(
    engine_backend: EngineBackend, name: str, how: dict[str, Any]
) -> None:
    for item in EXAMPLES[name].items:
        assert_all_ways_are_one(EXAMPLES[name], lambda: engine_backend, item, how)
    assert not engine_backend.engine.has_work
    engine_backend.engine.check()


def batches(example: Example, backend: Callable[[], Backend], **how: Any) -> list[list[dict[str, Any]]]:
    """What batches of all items give: of the program, compiled, and loaded where one graph serves all of them."""
    ways = [example.program, example.program.compile(static=example.static)]
    if not example.static:
        ways.append(example.from_json(example.items[0]))
    return [[seen(state) for state in way.run_batch(example.items, backend=backend(), **how)] for way in ways]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_batch_of_six_gives_on_the_mock_what_each_gives_alone(name: str) -> None:
    example = EXAMPLES[name]
    assert len(example.items) == 6
    alone = [seen(example.program.run(**item, backend=Hashing(), **GREEDY)) for item in example.items]
    for together in batches(example, Hashing, **GREEDY):
        assert together == alone
    assert len({str(one) for one in alone}) == 6, "the items differ"


@pytest.mark.parametrize("name", ON_ENGINE)
def test_a_batch_of_six_gives_on_the_engine_what_each_gives_alone(engine_backend: EngineBackend, name: str) -> None:
    example = EXAMPLES[name]
    alone = [seen(example.program.run(**item, backend=engine_backend, **sampled(3))) for item in example.items]
    for together in batches(example, lambda: engine_backend, **sampled(3)):
        assert together == alone
    engine_backend.engine.check()


@pytest.mark.parametrize("name", ON_ENGINE)
def test_a_graph_computes_no_more_than_the_program_as_it_stands(name: str) -> None:
    example = EXAMPLES[name]
    item = example.items[0]
    _, eager = measured(example.program, item, example.backend())
    _, compiled = measured(example.from_json(item), example.open_arguments(item), example.backend())
    assert eager is not None
    assert compiled is not None
    assert compiled.tokens <= eager.tokens
    assert compiled.passes <= eager.passes


def test_reads_that_nobody_needed_yet_hold_up_a_program_and_not_its_graph() -> None:
    example = early_reads.EXAMPLE
    _, eager = measured(example.program, example.items[0], example.backend())
    _, compiled = measured(example.program.compile(), example.items[0], example.backend())
    assert eager is not None
    assert compiled is not None
    assert compiled.passes < eager.passes / 4


def test_agents_of_a_batch_take_every_tool_and_end_in_different_rounds() -> None:
    states = react.react.run_batch(react.EXAMPLE.items, backend=Hashing(), temperature=0)
    taken = [re.findall(r"^Action \d: (\w+)", state.text().removeprefix(react.SHOT), re.MULTILINE) for state in states]
    assert {tool for tools in taken for tool in tools} == {"Search", "Lookup", "Finish"}
    assert len({len(tools) for tools in taken}) > 1


def test_some_essays_of_a_batch_are_judged_and_some_refused() -> None:
    states = judge.judge.run_batch(judge.EXAMPLE.items, backend=Hashing(), temperature=0)
    assert {len(state["judgment"]) if "judgment" in state else 0 for state in states} == {0, 6}


def test_the_engine_refuses_pictures_by_name(engine_backend: EngineBackend) -> None:
    with pytest.raises(lang.NotServed, match="image"):
        image_questions.image_questions.run(**image_questions.EXAMPLE.items[0], backend=engine_backend)


@pytest.mark.parametrize("name", MODULES)
def test_its_command_shows_a_run_that_a_graph_repeats(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    MODULES[name].main()
    assert "as a graph, saved and loaded: the same" in capsys.readouterr().out
