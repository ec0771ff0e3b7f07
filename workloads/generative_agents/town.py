"""A generated trace: a small town whose agents perceive, remember and go about, call by call.

The five functions are those that make up most of the calls of the original's trace, with its limits on output tokens.
An agent's call holds its persona and the last memories; what an event was worth (poignancy) decides nothing here, but
every event becomes a memory, so that prompts differ from call to call behind an equal beginning.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

LIMITS = {
    "poignancy": 2,
    "event_triple": 20,
    "pronunciatio": 6,
    "action_sector": 10,
    "action_object": 5,
}
"""Function -> output tokens, as in SGLang's benchmark."""
INSTRUCTIONS = {
    "poignancy": (
        "Rate how much an event matters to the person it happens to, from 1 (brushing teeth, making a bed) to 10 (a "
        "birth, a break with a friend). Give the number alone.\n"
    ),
    "event_triple": (
        "Turn the sentence into a triple of subject, verb and object.\nSentence: Ida Moor is eating breakfast.\n"
        "Triple: (Ida Moor, eat, breakfast)\nSentence: Paul Kerr is repairing a bicycle in the yard.\n"
        "Triple: (Paul Kerr, repair, bicycle)\n"
    ),
    "pronunciatio": "Turn the action into one or two emoji.\nAction: sleeping\nEmoji: zzz\n",
    "action_sector": (
        "Choose the area of the town where the action takes place. Choose one of the list, and stay where the person "
        "is if the action can be done there.\n"
    ),
    "action_object": "Choose the thing that the person uses for the action. Choose one of the list.\n",
}
PEOPLE = ("Ann Berg", "Carl Dahl", "Eva Fink", "Gus Holm", "Iris Jung", "Karl Lund", "Mona Noll", "Otto Pohl")
TRADES = (
    "runs the bakery",
    "teaches at the school",
    "keeps the library",
    "repairs boats",
    "sells flowers",
    "writes songs",
)
AREAS = ("bakery", "school", "library", "boatyard", "market", "park", "inn", "harbour", "workshop", "chapel")
THINGS = ("table", "shelf", "oven", "bench", "boat", "lamp", "piano", "desk", "door", "cart")
DONE = (
    "is talking with a neighbour",
    "is carrying boxes",
    "is reading",
    "is resting",
    "is cooking",
    "is looking for a key",
)


class AgentCall(NamedTuple):
    agent: str
    function: str
    prompt: str
    answer: str


def town(n_agents: int, n_events: int, n_memories: int, seed: int) -> Iterator[AgentCall]:
    """Calls in the order of the town's time; those of one agent depend on one another. Events come to agents in turn;
    of each the agent makes two to five calls."""
    rng = random.Random(f"{seed}/town")
    memories: dict[str, list[str]] = {}
    for event in range(n_events):
        who = event % n_agents
        name = PEOPLE[who % len(PEOPLE)] + (f" {who}" if who >= len(PEOPLE) else "")
        trade = TRADES[who % len(TRADES)]
        kept = memories.setdefault(name, [])
        happened = f"{rng.choice(PEOPLE)} {rng.choice(DONE)} at the {rng.choice(AREAS)}"
        persona = f"{name} {trade}, lives above the {AREAS[who % len(AREAS)]} and gets up early.\n"
        known = "".join(f"- {memory}\n" for memory in kept[-n_memories:])
        here = rng.choice(AREAS)
        asked = {
            "poignancy": (
                f"{persona}What {name} remembers:\n{known}Event: {happened}.\nRate:",
                f" {rng.randint(1, 9)}",
            ),
            "event_triple": (
                f"Sentence: {happened}.\nTriple:",
                f" ({happened.split(' is ')[0]}, do, {rng.choice(THINGS)})",
            ),
            "pronunciatio": (f"Action: {happened.split(' is ')[1]}\nEmoji:", " :-)"),
            "action_sector": (
                f"{persona}What {name} remembers:\n{known}{name} is at the {here}. The town has: {', '.join(AREAS)}.\n"
                f"Action: answering {happened}.\nArea:",
                f" {rng.choice(AREAS)}",
            ),
            "action_object": (
                f"The {here} has: {', '.join(THINGS)}.\nAction: answering {happened}.\nThing:",
                f" {rng.choice(THINGS)}",
            ),
        }
        functions = list(LIMITS)[: rng.randint(2, len(LIMITS))]
        for function in functions:
            prompt, answer = asked[function]
            yield AgentCall(name, function, INSTRUCTIONS[function] + prompt, answer)
        kept.append(f"{happened}.")
