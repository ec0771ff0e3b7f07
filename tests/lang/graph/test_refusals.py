"""What a graph can't hold is refused by the program's line, with what to do; nothing is guessed."""

from __future__ import annotations

import inspect
import json
import pprint
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

import lang as sgl
from lang.backends.mock import MockBackend

Body = Callable[[Any, Any], Any]
REFUSED: dict[str, tuple[Body, str]] = {}
"""By what is done: a program's function, whose line that ends in `# here` is refused, and words that must be said."""


def refused(what: str, says: str) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        assert what not in REFUSED
        REFUSED[what] = (body, says)
        return body

    return add


def line_of(body: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(body)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    return f"{__file__}:{first + at}"


def program_of(body: Body) -> sgl.Program:
    def asked(s: Any, x: Any) -> Any:
        s += "Q: " + sgl.gen("a", max_tokens=4)
        return body(s, x)

    return sgl.function(asked)


def idle(s: Any, i: Any) -> None:
    pass


# ---- Python's own branches and loops


@refused("if", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if s["a"]:  # here
        s += "yes"


@refused("if not", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if not s["a"]:  # here
        s += "no"


@refused("if on a comparison", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if s["a"] == "ok":  # here
        s += "yes"


@refused("if on an order", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if s["a"] < "ok":  # here
        s += "yes"


@refused("if on a chained comparison", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if "a" < s["a"] < "ok":  # here
        s += "yes"


@refused("if on a method", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if s["a"].startswith("o"):  # here
        s += "yes"


@refused("and", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    s["both"] = s["a"] and "yes"  # here


@refused("or", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    s["one"] = s["a"] or "none"  # here


@refused("an expression with if", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    s += "yes" if s["a"] else "no"  # here


@refused("assert", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    assert s["a"] == "ok"  # here


@refused("if on an argument", "trace(x=...), or compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    if x:  # here
        s += "yes"


@refused("while", "lang.loop(s, body, until=..., limit=...)")
def _(s: Any, x: Any) -> None:
    while s["a"] != "ok":  # here
        s += sgl.gen("a")


@refused("for", "iterated")
def _(s: Any, x: Any) -> None:
    for word in s["a"]:  # here
        s += word


@refused("for over words", "iterated")
def _(s: Any, x: Any) -> None:
    for word in s["a"].split():  # here
        s += word


@refused("a comprehension", "iterated")
def _(s: Any, x: Any) -> None:
    s["upper"] = [letter.upper() for letter in s["a"]]  # here


@refused("unpacking", "iterated")
def _(s: Any, x: Any) -> None:
    first, second = s["a"].split(":")  # here
    s += first + second


@refused("a starred argument", "iterated")
def _(s: Any, x: Any) -> None:
    print(*s["a"])  # here


@refused("match on texts", "lang.switch(s, value, cases, otherwise)")
def _(s: Any, x: Any) -> None:
    match s["a"]:  # here
        case "ok":
            s += "yes"


@refused("match on types", "lang.switch(s, value, cases, otherwise)")
def _(s: Any, x: Any) -> None:
    match s["a"]:  # here
        case str():
            s += "yes"


@refused("match on nothing", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    match x:  # here
        case None:
            s += "yes"


@refused("match on two", "lang.switch(s, value, cases, otherwise)")
def _(s: Any, x: Any) -> None:
    match 1, s["a"]:  # here
        case 1, "ok":
            s += "yes"


@refused("is None", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    if x is None:  # here
        s += "yes"


@refused("is not None", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += "yes" if x is not None else "no"  # here


@refused("any", "iterated")
def _(s: Any, x: Any) -> None:
    s["some"] = any(s["a"])  # here


@refused("max of two", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    s["best"] = max(s["a"], "ok")  # here


# ---- look-ups


@refused("in a text", "lang.apply(operator.contains, value, part)")
def _(s: Any, x: Any) -> None:
    if "ok" in s["a"]:  # here
        s += "yes"


@refused("in a list", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    if s["a"] in ["ok", "no"]:  # here
        s += "yes"


@refused("in a set", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    if s["a"] in {"ok", "no"}:  # here
        s += "yes"


@refused("a dict's item", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s += {"ok": "yes"}[s["a"]]  # here


@refused("a dict's get", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s += {"ok": "yes"}.get(s["a"], "no")  # here


@refused("a dict's key", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s["found"] = {s["a"]: "yes"}  # here


@refused("a set's item", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s["found"] = {s["a"]}  # here


@refused("a list's item", "lang.apply")
def _(s: Any, x: Any) -> None:
    s += ["no", "yes"][s["a"]]  # here


@refused("a list's item by an argument", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += ["no", "yes"][x]  # here


@refused("a list's part by an argument", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s["some"] = ["no", "yes"][:x]  # here


@refused("a variable by a value", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s += s[s["a"]]  # here


@refused("a variable set by a value", "lang.switch(...)")
def _(s: Any, x: Any) -> None:
    s[s["a"]] = "yes"  # here


@refused("a branch by a value", "lang.apply")
def _(s: Any, x: Any) -> None:
    forks = s.fork(2)
    forks[s["a"]] += "yes"  # here


# ---- what Python makes of a value


@refused("len", "the length of variable 'a'")
def _(s: Any, x: Any) -> None:
    s["n"] = len(s["a"])  # here


@refused("len of an argument", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s["n"] = len(x)  # here


@refused("int", "lang.apply(int, value)")
def _(s: Any, x: Any) -> None:
    s["n"] = int(s["a"])  # here


@refused("float", "lang.apply(float, value)")
def _(s: Any, x: Any) -> None:
    s["n"] = float(s["a"])  # here


@refused("complex", "lang.apply(complex, value)")
def _(s: Any, x: Any) -> None:
    s["n"] = complex(s["a"])  # here


@refused("round", "lang.apply(round, value)")
def _(s: Any, x: Any) -> None:
    s["n"] = round(x, 2)  # here


@refused("bytes", "lang.apply")
def _(s: Any, x: Any) -> None:
    s["n"] = bytes(x)  # here


@refused("str", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += str(x)  # here


@refused("repr", "lang.apply(repr, value)")
def _(s: Any, x: Any) -> None:
    s += repr(x)  # here


@refused("repr of a list that holds one", "lang.apply(repr, value)")
def _(s: Any, x: Any) -> None:
    s += str([x])  # here


@refused("format", "write the f-string in the program's own source")
def _(s: Any, x: Any) -> None:
    s += format(x, ">3")  # here


@refused("str.format", "write the f-string in the program's own source")
def _(s: Any, x: Any) -> None:
    s += "a {} b".format(x)  # noqa: UP032  # here


@refused("%s", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += "a %s b" % x  # noqa: UP031  # here


@refused("%s of two", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += "a %s %s" % (x, "b")  # noqa: UP031  # here


@refused("%r", "lang.apply(repr, value)")
def _(s: Any, x: Any) -> None:
    s += "a %r b" % (x,)  # noqa: UP031  # here


@refused("print", "lang.apply")
def _(s: Any, x: Any) -> None:
    print(s["a"])  # here


@refused("sorted", "iterated")
def _(s: Any, x: Any) -> None:
    s["n"] = sorted(s["a"])  # here


@refused("sorted values", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    s["n"] = sorted([s["a"], "b"])  # here


@refused("set", "iterated")
def _(s: Any, x: Any) -> None:
    s["n"] = set(s["a"])  # here


@refused("list", "iterated")
def _(s: Any, x: Any) -> None:
    s["n"] = list(s["a"])  # here


@refused("sum", "iterated")
def _(s: Any, x: Any) -> None:
    s["n"] = sum(x)  # here


@refused("isinstance", "the type of variable 'a'")
def _(s: Any, x: Any) -> None:
    if isinstance(s["a"], str):  # here
        s += "yes"


@refused("isinstance of an argument", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    if isinstance(x, list):  # here
        s += "yes"


@refused("type", "the type of variable 'a'")
def _(s: Any, x: Any) -> None:
    if type(s["a"]) is str:  # here
        s += "yes"


@refused("__class__", "the type of variable 'a'")
def _(s: Any, x: Any) -> None:
    s["kind"] = s["a"].__class__.__name__  # here


@refused("hasattr", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    if hasattr(x, "name"):  # here
        s += "yes"


@refused("getattr", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += getattr(x, "name", "nobody")  # here


@refused("a call", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += x("yes")  # here


@refused("json.dumps", "the type of argument 'x'")
def _(s: Any, x: Any) -> None:
    s += json.dumps(x)  # here


@refused("range", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    for _ in range(x):  # here
        s += sgl.gen()


@refused("an attribute", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += x.name  # here


@refused("an attribute that is set", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    x.name = "n"  # here


@refused("an item that is set", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    x["name"] = "n"  # here


@refused("with", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    with x:  # here
        s += "in"


# ---- calls whose shape depends on a value


@refused("fork", "the number of branches must be known")
def _(s: Any, x: Any) -> None:
    s.fork(x)  # here


@refused("gen(max_tokens)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", max_tokens=x)  # here


@refused("gen(temperature)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", temperature=x)  # here


@refused("gen(stop)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", stop=["\n", x])  # here


@refused("gen(regex)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", regex=x)  # here


@refused("gen(choices)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", choices=x)  # here


@refused("gen(name)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen(x)  # here


@refused("gen(n)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.gen("b", n=x)  # here


@refused("select(choices)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.select("b", x)  # here


@refused("select(name)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    s += sgl.select(x, ["a", "b"])  # here


@refused("var_scope", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    with s.var_scope(x):  # here
        s += "in"


@refused("loop(limit)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    sgl.loop(s, idle, limit=x)  # here


@refused("switch(cases)", "compile(static=['x'])")
def _(s: Any, x: Any) -> None:
    sgl.switch(s, s["a"], x)  # here


# ---- what happens while the program runs


@refused("s.error()", "raised where it is read")
def _(s: Any, x: Any) -> None:
    if s.error():  # here
        s += "sorry"


@refused("s.messages()", "s.text()")
def _(s: Any, x: Any) -> None:
    s["all"] = s.messages()  # here


@refused("s.text_iter()", "run(stream=True)")
def _(s: Any, x: Any) -> None:
    for _ in s.text_iter("a"):  # here
        pass


# ---- regions


def nothing(s: Any) -> None:
    pass


@refused("a variable of the function changed in a loop", "s['total'] = ...")
def _(s: Any, x: Any) -> None:
    total = 0

    def body(s: Any, i: Any) -> None:
        nonlocal total
        total += 1

    sgl.loop(s, body, limit=3)  # here
    s += f"{total}"


@refused("a list changed in a loop", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    found: list[Any] = []

    def body(s: Any, i: Any) -> None:
        found.append("one")

    sgl.loop(s, body, limit=3)  # here
    s["n"] = len(found)


@refused("a list changed in a branch", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    found: list[Any] = []
    sgl.cond(s, s["a"] == "ok", lambda _: found.append("yes"))  # here
    s["n"] = len(found)


@refused("a dict changed in a branch", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    found: dict[str, Any] = {"a": 1}

    def good(s: Any) -> None:
        found["a"] = 2

    sgl.cond(s, s["a"] == "ok", nothing, good)  # here
    s["n"] = found["a"]


@refused("a set changed in until", "s['seen'] = ...")
def _(s: Any, x: Any) -> None:
    seen: set[str] = set()

    def until(s: Any) -> Any:
        seen.add("one")
        return s["a"] == "ok"

    sgl.loop(s, idle, until=until, limit=3)  # here
    s["n"] = len(seen)


@refused("a list in a list changed in a loop", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    found: dict[str, list[Any]] = {"all": []}

    def body(s: Any, i: Any) -> None:
        found["all"].append("one")

    sgl.loop(s, body, limit=3)  # here
    s["n"] = len(found["all"])


class Box:
    def __init__(self) -> None:
        self.n = 0


@refused("an object's attribute changed in a branch", "s['box'] = ...")
def _(s: Any, x: Any) -> None:
    box = Box()

    def good(s: Any) -> None:
        box.n += 1

    sgl.cond(s, s["a"] == "ok", good)  # here
    s["n"] = box.n


SHARED: list[Any] = []


@refused("a global list changed in a branch", "s['SHARED'] = ...")
def _(s: Any, x: Any) -> None:
    def good(s: Any) -> None:
        SHARED.append("one")

    sgl.cond(s, s["a"] == "ok", good)  # here


@refused("a list changed through a default", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    held: list[Any] = []

    def good(s: Any, found: list[Any] = held) -> None:
        found.append("one")

    sgl.cond(s, s["a"] == "ok", good)  # here


@refused("a list changed by a function that a branch calls", "s['found'] = ...")
def _(s: Any, x: Any) -> None:
    found: list[Any] = []

    def note(what: str) -> None:
        found.append(what)

    def good(s: Any) -> None:
        note("yes")

    sgl.cond(s, s["a"] == "ok", good)  # here
    s["n"] = len(found)


class Good:
    def __init__(self) -> None:
        self.n = 0

    def branch(self, s: Any) -> None:
        self.n += 1


@refused("a method that changes its object", "keep what changes in the state")
def _(s: Any, x: Any) -> None:
    good = Good()
    sgl.cond(s, s["a"] == "ok", good.branch)  # here
    s["n"] = good.n


@refused("a value that leaves a branch", "put it into s[...] inside")
def _(s: Any, x: Any) -> None:
    def good(s: Any) -> None:
        s += sgl.gen("b")
        leaked.put(s["b"])

    leaked: SimpleQueue[Any] = SimpleQueue()

    sgl.cond(s, s["a"] == "ok", good)
    s += leaked.get()  # here


@refused("a state that leaves a branch", "inside a cond or loop that has ended")
def _(s: Any, x: Any) -> None:
    leaked: SimpleQueue[Any] = SimpleQueue()

    def good(s: Any) -> None:
        leaked.put(s.fork(1))

    sgl.cond(s, s["a"] == "ok", good)
    fork = leaked.get()
    fork[0] += "here"  # here


@refused("a state that leaves a branch is read", "inside a cond or loop that has ended")
def _(s: Any, x: Any) -> None:
    leaked: SimpleQueue[Any] = SimpleQueue()

    def good(s: Any) -> None:
        fork = s.fork(1)
        fork += sgl.gen("b")
        leaked.put(fork[0])

    sgl.cond(s, s["a"] == "ok", good)
    s["b"] = leaked.get()["b"]  # here


@refused("a branch's group joined outside of the region", "inside a cond or loop that has ended")
def _(s: Any, x: Any) -> None:
    leaked: SimpleQueue[Any] = SimpleQueue()

    def body(s: Any, i: Any) -> None:
        leaked.put(s.fork(2))

    sgl.loop(s, body, limit=2)
    leaked.get()  # of the trace that sees what a round sets
    leaked.get().join()  # here


@refused("a role that begins in a branch", "a role or scope begins inside")
def _(s: Any, x: Any) -> None:
    def good(s: Any) -> None:
        s += sgl.user_begin()

    sgl.cond(s, s["a"] == "ok", good)  # here
    s += sgl.user_end()


@refused("a role that ends in a branch", "a role or scope begins inside")
def _(s: Any, x: Any) -> None:
    s += sgl.user_begin()

    def good(s: Any) -> None:
        s += sgl.user_end()

    sgl.cond(s, s["a"] == "ok", good)  # here


@refused("a scope that begins in a loop", "a role or scope begins inside")
def _(s: Any, x: Any) -> None:
    def body(s: Any, i: Any) -> None:
        s.var_scope("part").__enter__()

    sgl.loop(s, body, limit=2)  # here


@refused("whether a branch set a variable", "set it before the cond or loop")
def _(s: Any, x: Any) -> None:
    sgl.cond(s, s["a"] == "ok", lambda s: s.set_var("b", "yes"))
    if "b" in s:  # here
        s += "yes"


@refused("whether a round set a variable", "set it before the cond or loop")
def _(s: Any, x: Any) -> None:
    def body(s: Any, i: Any) -> None:
        if "b" in s:  # here
            s += "again"
        s.set_var("b", "yes")

    sgl.loop(s, body, limit=2)


@refused("a round's number", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    def body(s: Any, i: Any) -> None:
        if i == 0:  # here
            s += "first"

    sgl.loop(s, body, limit=2)


@refused("a cond's test in a function that it calls", "lang.cond(s, value, then, otherwise)")
def _(s: Any, x: Any) -> None:
    def is_good(value: Any) -> bool:
        return bool(value == "ok")  # here

    sgl.cond(s, is_good(s["a"]), nothing)


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_a_trace_is_refused(what: str) -> None:
    body, says = REFUSED[what]
    with pytest.raises(sgl.TraceError) as caught:
        program_of(body).trace()
    assert str(caught.value).startswith(f"{line_of(body)}: ")
    assert says in str(caught.value)


def test_an_f_string_without_source_is_refused() -> None:
    names: dict[str, Any] = {"sgl": sgl}
    exec('@sgl.function\ndef told(s, x):\n    s += "a"\n    s += f"<{x}>"\n', names)
    with pytest.raises(sgl.TraceError, match=r"^<string>:4: .*s \+= 'text' \+ value"):
        names["told"].trace()
    assert names["told"].run("b", backend=MockBackend()).text() == "a<b>"


PYTHON_REFUSES: dict[str, Callable[[Any], Any]] = {
    "a value in a text": lambda x: x in "ok no",
    "%d": lambda x: "%d" % x,  # noqa: UP031
    "division": lambda x: 1 / x,
    "an exponent": lambda x: 2**x,
}


@pytest.mark.parametrize("what", sorted(PYTHON_REFUSES))
def test_what_python_itself_refuses_is_a_type_error(what: str) -> None:
    with pytest.raises(TypeError):
        program_of(lambda s, x: s.set_var("b", PYTHON_REFUSES[what](x))).trace()


def test_a_role_may_end_and_begin_again_inside_of_a_branch() -> None:
    def turn(s: Any) -> None:
        s += sgl.user_end()
        s += sgl.user_begin()

    def turned(s: Any, x: Any) -> None:
        with s.user():
            s += x
            sgl.cond(s, x == "a", turn)
            s += "b"

    program = sgl.function(turned)
    for x in "ab":
        texts = [one.run(x, backend=MockBackend()).text() for one in (program, program.compile())]
        assert texts[0] == texts[1]


def test_a_value_is_told_in_words_to_who_looks_from_outside() -> None:
    seen: list[Any] = []

    def keeping(s: Any, x: Any) -> None:
        seen.append(x)

    sgl.function(keeping).trace()
    assert pprint.pformat(seen[0]) == "<argument 'x', known when the program runs>"


def test_the_same_value_is_itself() -> None:
    def kept(s: Any, x: Any) -> None:
        y = x
        s += "same" if y is x else "other"

    assert sgl.function(kept).compile().run("a", backend=MockBackend()).text() == "same"
