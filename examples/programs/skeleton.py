"""Skeleton of thought: a few short tips first, each then written out by a program of its own, all at a time.

A program that is called without a state has its own prompt and runs beside its caller, which goes on until it reads
what the other wrote. In the graph it is part of the caller's graph.
"""

from __future__ import annotations

import lang
from examples.programs.example import Example

N_TIPS = 3


@lang.function
def written_out(s: lang.ProgramState, topic: str, tip: str) -> None:
    s += f"A tip about {topic}: {tip}\nThe same in detail: " + lang.gen("detail", max_tokens=24, stop="\n\n")


@lang.function
def skeleton(s: lang.ProgramState, topic: str) -> list[str]:
    s += f"Here are {N_TIPS} short tips about {topic}.\n"
    for i in range(N_TIPS):
        s += f"{i + 1}. " + lang.gen(f"tip {i + 1}", max_tokens=12, stop=[".", "\n"]) + ".\n"
    details = [written_out(topic=topic, tip=s[f"tip {i + 1}"]) for i in range(N_TIPS)]
    s += "\nIn detail:\n"
    for i, detail in enumerate(details):
        s += f"{i + 1}. {detail['detail']}\n"
    return [detail["detail"] for detail in details]


TOPICS = ["staying healthy", "learning a language", "growing tomatoes", "repairing a bicycle", "sleeping well", "tea"]
EXAMPLE = Example(skeleton, items=[{"topic": topic} for topic in TOPICS])


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
