"""An LLM judges an essay: branch, solve, merge. One branch a dimension, side by side; then a verdict over all of them.

As in the paper's own example the model is first asked whether the essay is about the topic at all, and only then is
there anything to judge: `lang.cond` holds fork and join in one of its branches.
"""

from __future__ import annotations

from typing import Any

import lang
from examples.programs.example import Example

DIMENSIONS = ("clarity", "originality", "evidence", "structure", "style", "grammar")


def judged(s: Any) -> None:
    forks = s.fork(len(DIMENSIONS))
    forks += lambda i: f"Judge its {DIMENSIONS[i]} in a sentence, then write END: "
    forks += lang.gen("judgment", max_tokens=24, stop="END")
    forks.join()
    for dimension, judgment in zip(DIMENSIONS, s["judgment"]):
        s += f"{dimension}: {judgment}\n"
    s += "In all, from A to D, its grade is " + lang.gen("grade", max_tokens=2, regex="[A-D][+-]?")
    s["verdict"] = s["grade"]


def refused(s: Any) -> None:
    s += "It isn't judged."
    s["verdict"] = "off topic"


@lang.function
def judge(s: lang.ProgramState, topic: str, essay: str) -> str:
    s += f"An essay about {topic}:\n{essay}\n\nIs it about {topic}? " + lang.select("related", ["yes", "no"]) + "\n"
    lang.cond(s, s["related"] == "yes", judged, refused)
    return s["verdict"]


ESSAYS = [
    ("snow", "No two flakes are alike, people say. Nobody has looked at all of them, so nobody knows."),
    ("bees", "Bees dance to tell each other where flowers are. The angle of the dance is that to the sun."),
    ("tea", "Tea is a drink made of leaves and hot water. It comes from China and is drunk all over the world."),
    ("rivers", "A river begins small. On its way it takes up other waters, until it is wide and slow at the sea."),
    ("bridges", "The cook puts the onions into the pan and waits until they are brown. Then he adds the stock."),
    ("clocks", "A pendulum swings at a pace that depends on its length. So the first good clocks were tall."),
]
EXAMPLE = Example(judge, items=[{"topic": topic, "essay": essay} for topic, essay in ESSAYS])


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
