"""ReAct: the model thinks, acts, sees what came of it, and goes on until it finishes or has had its rounds.

How many rounds there are and which tool runs is decided by what the model says, so the loop and the choice are
`lang.loop` and `lang.switch`: nodes of the graph. The tools are Python functions, called with `lang.apply`. A regex
holds each action to one of the tools.
"""

from __future__ import annotations

import re
from typing import Any

import lang
from examples.programs.example import Example

ROUNDS = 4
ACTION = r"(Search|Lookup|Finish)\[[A-Za-z ]{2,20}\]"
SHOT = """Question: In which country does the river rise that flows through Vienna?
Thought 1: I need the river that flows through Vienna.
Action 1: Search[Vienna]
Observation 1: Vienna is the capital of Austria. It lies on the Danube.
Thought 2: The river is the Danube. Where does it rise?
Action 2: Search[Danube]
Observation 2: The Danube is a river of Europe. It rises in Germany and ends in the Black Sea.
Thought 3: It rises in Germany.
Action 3: Finish[Germany]

"""
PAGES = {
    "Paris": "Paris is the capital of France. It lies on the Seine. The Louvre stands in it.",
    "Seine": "The Seine is a river of France. It rises near Dijon and ends in the Channel.",
    "Dijon": "Dijon is a town in Burgundy. It is known for its mustard.",
    "Lima": "Lima is the capital of Peru. It lies on the Pacific coast. The Rimac flows through it.",
}


@lang.pure
def tool_of(action: str) -> str:
    return action.partition("[")[0]


@lang.pure
def argument_of(action: str) -> str:
    found = re.search(r"\[(.*?)\]?$", action)
    return found.group(1) if found else ""


def search(title: str) -> str:
    """The page of that title, of a small library."""
    return PAGES.get(title, f"No page {title!r}. There are: {', '.join(PAGES)}.")


def lookup(page: str, word: str) -> str:
    """The first sentence of the page with that word."""
    found = (sentence for sentence in page.split(". ") if word.lower() in sentence.lower())
    return next(found, f"Nothing about {word!r} on this page.")


def search_page(s: Any) -> None:
    s["page"] = s["observation"] = lang.apply(search, lang.apply(argument_of, s["action"]))


def look_up(s: Any) -> None:
    s["observation"] = lang.apply(lookup, s["page"], lang.apply(argument_of, s["action"]))


def finish(s: Any) -> None:
    s["answer"] = lang.apply(argument_of, s["action"])
    s["observation"] = "The question is answered."


def one_round(s: Any, i: Any) -> None:
    s += f"Thought {i + 1}: " + lang.gen("thought", max_tokens=24, stop="\n")
    s += f"\nAction {i + 1}: " + lang.gen("action", max_tokens=40, regex=ACTION)
    s["tool"] = lang.apply(tool_of, s["action"])
    lang.switch(s, s["tool"], {"Search": search_page, "Lookup": look_up}, otherwise=finish)
    s += f"\nObservation {i + 1}: {s['observation']}\n"


@lang.function
def react(s: lang.ProgramState, question: str) -> str:
    s += SHOT + f"Question: {question}\n"
    s["page"], s["answer"] = "", "unknown"
    lang.loop(s, one_round, limit=ROUNDS, until=lambda s: s["tool"] == "Finish")
    return s["answer"]


QUESTIONS = [
    "Where does the river rise that flows through Paris?",
    "What is the town known for near which the Seine rises?",
    "Which river flows through the capital of Peru?",
    "Which museum stands in the capital of France?",
    "In which region lies Dijon?",
    "On which coast lies Lima?",
]
EXAMPLE = Example(
    react, items=[{"question": question} for question in QUESTIONS], functions=[tool_of, argument_of, search, lookup]
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
