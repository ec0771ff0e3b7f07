"""The exact passes change nothing that a program can see, whatever the program."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from engine import EngineConfig, make_engine
from lang import passes
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend

EXACT = {
    "common_calls": [passes.common_calls()],
    "dead_code": [passes.dead_code()],
    "forced_text": [passes.forced_text()],
    "prefetch": [passes.prefetch(4)],
    "siblings": [passes.one_call_for_siblings()],
    "all": [
        passes.forced_text(),
        passes.common_calls(),
        passes.one_call_for_siblings(),
        passes.dead_code(),
        passes.prefetch(4),
        passes.code_movement(),  # nothing is declared movable
    ],
}
NAMES = st.sampled_from(["x", "y", "z"])
STEPS = st.deferred(
    lambda: st.one_of(
        st.tuples(st.just("text"), st.sampled_from(["a", "bb", "Once upon a time. "])),
        st.tuples(st.just("argument"), st.none()),
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("drawn"), NAMES),
        st.tuples(st.just("forced"), NAMES),
        st.tuples(st.just("select"), NAMES),
        st.tuples(st.just("read"), NAMES),
        st.tuples(st.just("message"), NAMES),
        st.tuples(st.just("fork"), st.tuples(st.integers(1, 3), st.booleans(), SCRIPTS)),
        st.tuples(st.just("call"), st.tuples(st.booleans(), SCRIPTS)),
        st.tuples(st.just("cond"), st.tuples(SCRIPTS, SCRIPTS)),
        st.tuples(st.just("loop"), st.tuples(st.integers(1, 3), SCRIPTS)),
    )
)
SCRIPTS = st.lists(STEPS, max_size=4)


def freeze(script):
    return tuple((kind, tuple(map(frozen, value)) if isinstance(value, tuple) else value) for kind, value in script)


def frozen(value):
    return freeze(value) if isinstance(value, list) else value


def write(s, topic, script):
    for kind, value in script:
        if kind == "text":
            s += value
        elif kind == "argument":
            s += topic
        elif kind == "gen":
            s += sgl.gen(value, max_tokens=3)
        elif kind == "drawn":
            s += sgl.gen(value, max_tokens=3, temperature=1.0, seed=7)
        elif kind == "forced":
            s += "b" + sgl.gen(value, regex="ab")
        elif kind == "select":
            s += sgl.select(value, ["a", "b"])
        elif kind == "read" and value in s:
            s += "<" + s[value] + ">"
        elif kind == "message":
            s += sgl.user("?" + topic) + sgl.assistant(sgl.gen(value, max_tokens=3))
        elif kind == "fork":
            n, same, inner = value
            forks = s.fork(n)
            for i, fork in enumerate(forks):
                if not same:
                    fork += f"{i}"
                fork += sgl.gen("branch", max_tokens=3)
                write(fork, topic, inner)
            s += "+".join(fork["branch"] for fork in forks)
        elif kind == "call":
            read, inner = value
            child = scripted(topic, tuple(inner))
            if read:
                s += child
        elif kind == "cond":
            then, otherwise = value
            set_all(s)
            s += sgl.gen("test", max_tokens=2)
            sgl.cond(s, s["test"] == "ab", writes(topic, then), writes(topic, otherwise))
        elif kind == "loop":
            limit, inner = value
            set_all(s)
            sgl.loop(s, writes(topic, inner), limit=limit, until=lambda s: s["x"] == "ab")


def set_all(s):
    """So that it is known that they are there."""
    for name in ("x", "y", "z", "branch", "test"):
        s[name] = "set"


def writes(topic, script):
    return lambda s, _round=None: write(s, topic, script)


@sgl.function
def scripted(s, topic, script):
    write(s, topic, script)
    s["done"] = True


def seen(state):
    """All that a program's user can see, but for counts of what is cached."""
    variables = {name: state[name] for name in ("x", "y", "z", "branch", "test", "done") if name in state}
    try:
        messages = state.messages()
    except ValueError as error:  # text between messages
        messages = str(error)
    return state.text(), messages, variables


def meta(state, name):
    try:
        info = dict(state.get_meta_info(name))
    except KeyError:
        return None
    info.pop("cached_tokens", None)
    return info


def reply(prompt):
    return "ab" if prompt.endswith(("a", "b")) else f"{sum(map(ord, prompt)) % 7}"


def mock():
    made = MockBackend(reply=reply, logprobs=lambda prompt, choice: [-float((len(prompt) + ord(choice)) % 3)])
    made.capabilities = sgl.Capabilities("a mock")
    return made


@settings(max_examples=120, deadline=None)
@given(script=SCRIPTS, which=st.sampled_from(sorted(EXACT)))
def test_text_messages_variables_and_meta_are_those_of_the_program(script, which):
    program = scripted.bind(script=freeze(script))
    compiled = program.compile(passes=EXACT[which])
    plain = program.run("tea", backend=mock(), temperature=0)
    state = compiled.run("tea", backend=mock(), temperature=0)
    assert seen(state) == seen(plain)
    for name in ("x", "y", "z"):
        if "forced" not in (told := meta(state, name) or {}):
            assert told == (meta(plain, name) or {})


@functools.cache
def engine():
    return EngineBackend(make_engine(EngineConfig(device="cpu", dtype="float64", pool_tokens=16384)))


@settings(max_examples=25, deadline=None)
@given(
    script=SCRIPTS, which=st.sampled_from(sorted(EXACT)), sampling=st.sampled_from([{"temperature": 0}, {"seed": 3}])
)
def test_the_same_on_the_engine(script, which, sampling):
    program = scripted.bind(script=freeze(script))
    plain = program.run("tea", backend=engine(), **sampling)
    state = program.compile(passes=EXACT[which]).run("tea", backend=engine(), **sampling)
    assert seen(state) == seen(plain)
