"""Random programs: as they stand, as graphs, and as graphs that were saved and loaded, they do the same.

Compared are text, messages, all variables, meta info, what is returned, or the error that a run ends with. Left out is
what may differ: `cached_tokens` (calls come in another order), and which calls were sent after one that failed. Python
errors in a program that another one calls, and doesn't wait for, aren't among the scripts: when one comes, and so which
of that program's calls are given up with it, depends on when answers come.
"""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from engine import EngineConfig, make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.graph import Graph
from lang.graph.compiled import GraphProgram


def picture() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


PICTURE = picture()
NAMES = st.sampled_from(["x", "y", "z"])
ALL = ("x", "y", "z", "branch", "test", "set", "scope", "many", "applied")


def steps(images: bool) -> st.SearchStrategy[Any]:
    scripts: Any = st.deferred(lambda: st.lists(step, max_size=4))
    short: Any = st.deferred(lambda: st.lists(simple, max_size=2))
    nested: Any = st.lists(st.tuples(st.sampled_from(["cond", "switch"]), st.tuples(short, short)), max_size=1)
    simple = st.one_of(
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("read"), NAMES),
        st.tuples(st.just("fork"), st.tuples(st.integers(1, 2), st.sampled_from(["read", "no"]), st.just([]))),
        st.tuples(
            st.just("loop"), st.tuples(st.integers(1, 2), st.lists(st.tuples(st.just("gen"), NAMES), max_size=2))
        ),
    )
    step = st.one_of(
        st.tuples(st.just("text"), st.sampled_from(["a", "bb\n", "Once upon a time. "])),
        st.tuples(st.just("formatted"), st.sampled_from(["plain", "repr", "width", "sum"])),
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("many"), st.integers(2, 3)),
        st.tuples(st.just("int"), NAMES),
        st.tuples(st.just("select"), NAMES),
        st.tuples(st.just("read"), NAMES),
        st.tuples(st.just("whole"), st.none()),
        st.tuples(st.just("method"), NAMES),
        st.tuples(st.just("set"), NAMES),
        st.tuples(st.just("message"), st.sampled_from(["call", "pair", "block"])),
        st.tuples(st.just("scope"), scripts),
        st.tuples(
            st.just("fork"), st.tuples(st.integers(1, 3), st.sampled_from(["join", "read", "text", "no"]), scripts)
        ),
        st.tuples(st.just("copy"), scripts),
        st.tuples(st.just("child"), st.tuples(st.sampled_from(["call", "run", "batch", "state", "add"]), scripts)),
        st.tuples(st.just("apply"), NAMES),
        st.tuples(st.just("cond"), st.tuples(scripts, short)),
        st.tuples(st.just("switch"), st.tuples(short, scripts)),
        st.tuples(st.just("loop"), st.tuples(st.integers(1, 3), st.one_of(short, nested))),
        *([st.tuples(st.just("image"), st.none())] if images else []),
    )
    return scripts


def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def note(effects: list[str], text: str) -> str:
    effects.append(text)
    return text + "!"


def shortened(text: str) -> str:
    return text[:2]


EFFECTS: list[str] = []


def noted(text: str) -> str:
    return note(EFFECTS, text)


def write(s: Any, topic: Any, script: Any) -> None:
    for kind, value in script:
        if kind == "text":
            s += value
        elif kind == "formatted":
            if value == "plain":
                s += f"[{topic}]"
            elif value == "repr":
                s += f"{topic!r:>9}"
            elif value == "width" and "x" in s:
                s += f"{s['x']:_<7}|{s['x']!r}"
            elif value == "sum":
                s += topic + "/" + topic
        elif kind == "gen":
            s += sgl.gen(value, max_tokens=3, stop="7")
        elif kind == "many":
            s += sgl.gen("many", max_tokens=2, n=value, temperature=1.0, seed=5)
            s += "|".join(s["many"])
        elif kind == "int":
            s += sgl.gen_int(value, max_tokens=2)
        elif kind == "select":
            s += sgl.select(value, ["a", "b", topic], choices_method="greedy_token_selection")
        elif kind == "read" and value in s:
            s += "<" + f"{s[value]}" + ">"
        elif kind == "whole":
            s += str(len("")) + s.text()[-6:]
        elif kind == "method" and value in s:
            s += f"{s[value]}".upper() + f"{s[value]}"[1:2]
        elif kind == "set":
            s["set"] = [topic, found(s, value), {"deep": topic}]
        elif kind == "message":
            if value == "call":
                s += sgl.user("?" + topic) + sgl.assistant(sgl.gen("x", max_tokens=3))
            elif value == "pair":
                s += sgl.user_begin() + topic + sgl.user_end() + sgl.assistant_begin()
                s += sgl.gen("y", max_tokens=3) + sgl.assistant_end()
            else:
                with s.user():
                    s += "block " + topic
        elif kind == "scope":
            with s.var_scope("scope"):
                write(s, topic, value)
        elif kind == "fork":
            n, how, inner = value
            forks = s.fork(n)
            forks += lambda i: f"{i}" + sgl.gen("branch", max_tokens=3)
            for fork in forks:
                write(fork, topic, inner)
            if how == "join" and "branch" not in s:
                forks.join()
                s += "+".join(s["branch"])
                s["branch"] = "joined"
            elif how == "read":
                s += forks[n - 1]["branch"]
            elif how == "text":
                s += forks[0].text()[-9:]
        elif kind == "copy":
            with s.copy() as attempt:
                write(attempt, topic, value)
                attempt += sgl.gen(max_tokens=2)
        elif kind == "child":
            how, inner = value
            inner = tuple(inner)
            if how == "call":
                s += child(topic, inner)["own"]
            elif how == "run":
                s += child.run(topic, inner, max_tokens=2).ret_value
            elif how == "batch":
                s += "".join(state["own"] for state in child.run_batch([(topic, ()), (topic, inner)]))
            elif how == "state":
                child(s, topic, inner)
            else:
                s += child(topic, ())
        elif kind == "apply" and value in s:
            s["applied"] = sgl.apply(noted, f"{s[value]}")
            s += s["applied"] + sgl.apply(shortened, topic)
        elif kind in ("cond", "switch", "loop"):
            for name in ALL:
                s[name] = "0"
            s += sgl.gen("test", max_tokens=1)
            if kind == "cond":
                sgl.cond(s, s["test"] < "4", *(writes(topic, inner) for inner in value))
            elif kind == "switch":
                cases = {"1": writes(topic, value[0]), "2": writes(topic, value[1]), "3": writes(topic, [])}
                sgl.switch(s, s["test"], cases, writes(topic, value[0]))
            else:
                sgl.loop(s, writes(topic, value[1]), limit=value[0], until=lambda s: s["x"] == "1")
        elif kind == "image":
            s += sgl.image(PICTURE)


def writes(topic: Any, script: Any) -> Any:
    def branch(s: Any, *rounds: Any) -> None:
        for i in rounds:
            s += f"({i})"
        write(s, topic, script)

    return branch


@sgl.function
def child(s: Any, topic: Any, script: Any) -> Any:
    s += f"child of {topic}: " + sgl.gen("own", max_tokens=3)
    write(s, topic, script)
    return s["own"]


@sgl.function
def scripted(s: Any, topic: Any, script: Any) -> Any:
    write(s, topic, script)
    return [topic, found(s, "x"), ("end", s.text())]


def found(s: Any, name: str) -> Any:
    if name in s:
        return s[name]
    return None


class Fails(MockBackend):
    """Some answers are errors."""

    def generate(self, *args: Any) -> Any:
        call = super().generate(*args)
        if "8" in call.texts[0]:
            call.error = f"no {call.texts[0]}"
        return call


def reply(prompt: str) -> str:
    return f"{zlib.crc32(prompt.encode()) % 1000}"


def mock(seed: int, kind: type[MockBackend] = MockBackend) -> MockBackend:
    def logprobs(prompt: str, choice: str) -> list[float]:
        return [-float(zlib.crc32((prompt + choice).encode()) % 7)]

    def latency(prompt: str) -> int:
        return random.Random(f"{seed}{prompt}").randint(1, 5)

    return kind(reply, logprobs, latency)


def outcome(make: Callable[[Any], Any], script: Any, backend: Any, **sampling: Any) -> Any:
    """All that can be seen of a run. What goes wrong before the first call may go wrong while the program is traced."""
    EFFECTS.clear()
    try:
        state = make(frozen(script)).run("7up", backend=backend, **sampling)
    except Exception as error:
        return type(error), str(error)
    variables = {}
    for name in ALL:
        if name in state:
            variables[name] = caught(lambda name=name: state[name])
            variables[f"meta of {name}"] = caught(lambda name=name: meta(state.get_meta_info(name)))
    return state.text(), caught(state.messages), variables, state.ret_value, list(EFFECTS)


def caught(read: Any) -> Any:
    try:
        return read()
    except Exception as error:
        return type(error), str(error)


def meta(info: Any) -> Any:
    """Log-probabilities to nine digits: a prompt is computed in other pieces when more of it is cached."""
    return {name: rounded(value) for name, value in info.items() if name != "cached_tokens"}


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    return [rounded(one) for one in value] if isinstance(value, list) else value


def plainly(script: Any) -> Any:
    return scripted.bind(script=script)


def loaded(script: Any) -> Any:
    graph = plainly(script).compile().graph
    return GraphProgram(Graph.from_json(graph.to_json(), functions=[noted, shortened]))


GRAPHS = (
    lambda script: plainly(script).compile(),
    lambda script: scripted.compile(static=["script"]).bind(script=script),
    loaded,
)


@settings(max_examples=40, deadline=None)
@given(script=steps(images=True), seed=st.integers(0, 9))
def test_a_graph_does_what_the_program_does(script: Any, seed: int) -> None:
    plain = outcome(plainly, script, mock(seed), temperature=0)
    for make in GRAPHS:
        assert outcome(make, script, mock(seed + 1), temperature=0) == plain


@settings(max_examples=25, deadline=None)
@given(script=steps(images=True), seed=st.integers(0, 9))
def test_what_goes_wrong_goes_wrong_alike(script: Any, seed: int) -> None:
    def alike(found: Any) -> Any:
        """An error fails the program; which calls had been made by then may differ, and so do functions called."""
        return found[:4]

    plain = outcome(plainly, script, mock(seed, Fails), temperature=0)
    for make in GRAPHS:
        assert alike(outcome(make, script, mock(seed + 1, Fails), temperature=0)) == alike(plain)


@settings(max_examples=8, deadline=None)
@given(scripts=st.lists(steps(images=True), min_size=2, max_size=4))
def test_a_batch_of_graphs_does_what_the_programs_do(scripts: Any) -> None:
    compiled = scripted.compile(static=["script"])
    items = [(f"topic {i}", frozen(script)) for i, script in enumerate(scripts)]
    plain = scripted.run_batch(items, backend=mock(1), temperature=0)
    states = compiled.run_batch(items, backend=mock(2), temperature=0)
    for state, other in zip(states, plain, strict=True):
        assert repr(state.error()) == repr(other.error())
        if other.error() is None:
            assert (state.text(), state.ret_value) == (other.text(), other.ret_value)


@functools.cache
def engine() -> EngineBackend:
    return EngineBackend(make_engine(EngineConfig(device="cpu", dtype="float64", pool_tokens=16384)))


@settings(max_examples=6, deadline=None)
@given(script=steps(images=False), sampling=st.sampled_from([{"temperature": 0}, {"seed": 3}]))
def test_the_same_on_the_engine(script: Any, sampling: dict[str, Any]) -> None:
    plain = outcome(plainly, script, engine(), **sampling)
    for make in GRAPHS:
        assert outcome(make, script, engine(), **sampling) == plain
