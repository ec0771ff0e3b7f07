"""Programs that use all that a graph can hold."""

from __future__ import annotations

from typing import Any

import lang as sgl
from lang.backends.mock import MockBackend

NASTY = 'He said "no" </script><b>&amp;</b> `x` %%{init}%% {y} \\ \n\t\u2028\x00 ünï 🎉'


def louder(text: str) -> str:
    return text.upper() + "!"


def backend() -> MockBackend:
    return MockBackend(reply=lambda prompt: f"ok{len(prompt) % 7}")


@sgl.function
def answered(s: Any, question: Any) -> Any:
    s += "Q: " + question + " A: " + sgl.gen("answer", max_tokens=16)
    return s["answer"]


@sgl.function
def research(s: Any, topic: Any, style: Any = "dry", many: Any = (2, 0.5)) -> Any:
    s += sgl.system(f"Be {style}.")
    with s.user():
        s += f"Write about {topic!r:>12}: "
    s += sgl.assistant(sgl.gen("plan", max_tokens=30, stop="\n", temperature=0))
    called = answered("What is it?")
    forks = s.fork(2)
    forks += lambda i: f" part {i}: " + sgl.gen("part")
    deep = forks[0].fork(2)
    deep += [" one ", " two "]
    deep += sgl.gen("deep", n=2)
    deep.join()
    forks.join()
    s += called["answer"]

    def good(s: Any) -> None:
        s += " good: " + sgl.gen("why")

    def bad(s: Any) -> None:
        s += " bad"

    sgl.cond(s, s["plan"] == "ok1", good, bad)

    def body(s: Any, i: Any) -> None:
        s += f" round {i}: " + sgl.gen("more")

    sgl.loop(s, body, limit=3, until=lambda s: s["more"] == "ok3")
    with s.var_scope("end"):
        s += sgl.apply(louder, s["more"]) + sgl.select("kind", ["a", s["plan"]])
    s["all"] = [s["kind"], {"part": s["part"]}]
    return {"end": s["end"], "kind": s["kind"], "many": many}


@sgl.function
def nasty(s: Any, x: Any) -> None:
    s += NASTY
    s += x
    s += sgl.gen('a "b" </script>', stop=["</script>", '"'])
