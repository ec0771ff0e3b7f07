"""Variables that branches and loops of a graph set hold there what they hold in the program as it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lang
from lang.backends.mock import MockBackend

Way = Callable[[lang.Program], lang.Program]
WAYS = [pytest.param(lambda program: program, id="eager"), pytest.param(lambda program: program.compile(), id="graph")]


ROUNDS = ("before",)


def backend() -> MockBackend:
    return MockBackend(lambda prompt: str(len(prompt)))


@pytest.mark.parametrize("way", WAYS)
def test_a_value_is_written_by_itself(way: Way) -> None:
    @lang.function
    def program(s: Any, text: str) -> None:
        s += text
        s += text + lang.gen("x")

    assert way(program).run("ab", backend=backend()).text() == "abab4"


@pytest.mark.parametrize("way", WAYS)
def test_a_round_reads_what_a_branch_in_the_round_before_set(way: Way) -> None:
    @lang.function
    def program(s: Any, go: str) -> str:
        s["seen"] = ""

        def longer(s: Any) -> None:
            s["seen"] = s["seen"] + "1"

        def inner(s: Any, i: Any) -> None:
            lang.cond(s, go == "yes", longer)

        def outer(s: Any, i: Any) -> None:
            s += f"{s['seen']} "
            lang.loop(s, inner, limit=2)

        lang.loop(s, outer, limit=3)
        return s["seen"]

    state = way(program).run("yes", backend=backend())
    assert (state.text(), state.ret_value) == (" 11 1111 ", "111111")
    assert way(program).run("no", backend=backend()).ret_value == ""


@pytest.mark.parametrize("way", WAYS)
def test_what_the_last_round_set_is_read_after_the_loop(way: Way) -> None:
    @lang.function
    def program(s: Any) -> list[Any]:
        def body(s: Any, i: Any) -> None:
            s += lang.gen("x") + ","
            s["length"], s["round"] = lang.apply(len, s.text()), i

        lang.loop(s, body, limit=3)
        return [s["length"], s["round"]]

    assert way(program).run(backend=backend()).ret_value == [6, 2]


@pytest.mark.parametrize("constant", [False, True], ids=["computed", "constant"])
@pytest.mark.parametrize("way", WAYS)
def test_a_variable_that_only_one_branch_sets_is_missing_after_the_other(way: Way, constant: bool) -> None:
    @lang.function
    def program(s: Any, word: str) -> Any:
        def then(s: Any) -> None:
            s["n"] = 2 if constant else lang.apply(len, word)

        lang.cond(s, word == "ab", then)
        return s["n"]

    assert way(program).run("ab", backend=backend()).ret_value == 2
    with pytest.raises(KeyError, match="no variable 'n'"):
        way(program).run("other", backend=backend())


@pytest.mark.parametrize("way", WAYS)
def test_a_list_grows_from_round_to_round(way: Way) -> None:
    @lang.function
    def program(s: Any) -> Any:
        s["said"] = []

        def body(s: Any, i: Any) -> None:
            s += lang.gen("x") + ","
            s["said"] = s["said"] + [s["x"]]

        lang.loop(s, body, limit=3)
        return ["first", *ROUNDS] + s["said"]

    assert way(program).run(backend=backend()).ret_value == ["first", *ROUNDS, "0", "2", "4"]
