"""A town of our own whose people perceive, remember, choose a place and a room, and act: calls with their arguments."""

from __future__ import annotations

import random
from typing import NamedTuple

from workloads.generative_agents.functions import likely_output

Call = tuple[str, str, dict[str, str]]
"""Agent, function, arguments."""

PLACES = {
    "Millpond Park": "lawn, pond, bandstand",
    "The Brass Kettle": "taproom, kitchen, terrace",
    "Town Library": "reading room, archive",
    "Quay Market": "fish stall, fruit stall, office",
    "Riverside School": "classroom, music room, yard",
    "Ferry House": "waiting room, pier",
    "Cooper's Workshop": "forge, bench, store",
    "Saint Anne's Clinic": "ward, pharmacy",
}
FIRST = ("Agnes", "Bela", "Cora", "Dov", "Esme", "Finn", "Greta", "Henk", "Ida", "Jory", "Karl", "Lise", "Milo")
LAST = ("Aldous", "Birk", "Caspari", "Dorn", "Elling", "Fane", "Gorse", "Hale", "Imhof", "Jessen", "Kroll", "Lange")
TRADES = (
    "a ferrywoman who knows everybody's timetable",
    "a teacher who collects pressed flowers",
    "a cook with strong opinions about soup",
    "a carpenter who is building a boat in the yard",
    "a nurse who sings in the choir",
    "a student of maps and old harbours",
    "a baker who rises at three",
    "a librarian who writes letters to authors",
)
TRAITS = ("patient", "curious", "stubborn", "cheerful", "shy", "proud", "kind", "restless", "thrifty", "dreamy")
AIMS = (
    "is preparing the summer fair",
    "wants to learn the accordion",
    "is saving for a bicycle",
    "has promised to mend the bandstand's roof",
    "is looking for the owner of a lost dog",
    "plans a supper for the whole street",
)
ACTIONS = (
    "sweeping the yard",
    "reading the newspaper",
    "mending a net",
    "sorting old photographs",
    "buying plums",
    "practising scales",
    "writing a list for the fair",
    "talking with a neighbour about the weather",
    "repairing a lamp",
    "feeding the ducks",
    "cooking lentils",
    "resting on a bench",
)
SEEN = (
    "the ferry comes in late",
    "{other} is {action}",
    "the market is closing early",
    "a child has lost a kite in the lime tree",
    "{other} asks for help with the fair",
    "it begins to rain",
    "the lamp by the pond is broken",
    "{other} tells that the school will be painted",
)


class Person(NamedTuple):
    name: str
    home: str
    rooms: str
    about: str
    plan: str


def sample_calls(
    n_agents: int, n_events: int | None, seed: int, n_memories: int | None = None, steps: int = 12
) -> list[Call]:
    """Time steps in which one agent after another perceives one event to three, goes to a place, and acts.

    What was perceived is remembered: descriptions hold the last `n_memories`; None: all, so that they only grow.
    n_agents: at most MOST_AGENTS. n_events: the first so many calls; None: `steps` time steps.
    """
    rng = random.Random(f"town/{seed}")
    people = _people(rng, n_agents)
    at = {person.name: (person.home, person.rooms) for person in people}
    doing = {person.name: "asleep" for person in people}
    memories: dict[str, list[str]] = {person.name: [] for person in people}
    calls: list[Call] = []
    step = 0
    while step < steps if n_events is None else len(calls) < n_events:
        for person in people:
            calls += _step(rng, person, people, at, doing, memories, 7 + step, n_memories)
        step += 1
    return calls[:n_events]


MOST_AGENTS = len(FIRST) * len(LAST)


def _people(rng: random.Random, n: int) -> list[Person]:
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], n)
    people = []
    for name in names:
        first = name.split()[0]
        a, b, c = rng.sample(TRAITS, 3)
        about = (
            f"Name: {name}\nAge: {rng.randint(19, 78)}\nCharacter: {a}, {b}, {c}\n"
            f"{name} is {rng.choice(TRADES)}. {first} lives near the river and has done so for {rng.randint(2, 40)} "
            f"years. At present {first} {rng.choice(AIMS)}. {first} goes to bed around {rng.randint(8, 11)} and rises "
            f"around {rng.randint(4, 8)}."
        )
        first_thing, then = rng.sample(ACTIONS, 2)
        plan = f"Today {name} means to spend the morning {first_thing} and the afternoon {then}."
        people.append(Person(name, f"{name}'s house", f"kitchen, {first}'s room, bathroom", about, plan))
    return people


def _step(
    rng: random.Random,
    person: Person,
    people: list[Person],
    at: dict[str, tuple[str, str]],
    doing: dict[str, str],
    memories: dict[str, list[str]],
    hour: int,
    n_memories: int | None,
) -> list[Call]:
    """Calls of one agent in one step. Changes where everybody is, and what they do and remember."""
    name, calls = person.name, []
    for _ in range(rng.randint(1, 3)):
        other = rng.choice([one.name for one in people if one is not person] or ["a stranger"])
        event = rng.choice(SEEN).format(other=other, action=doing.get(other, "passing by"))
        kept = memories[name] if n_memories is None else memories[name][max(0, len(memories[name]) - n_memories) :]
        remembered = "".join(f"\n- {memory}" for memory in kept)
        described = person.about + (f"\nWhat {name} remembers:{remembered}" if remembered else "")
        calls.append((name, "poignancy_event", {"persona_name": name, "persona_iss": described, "event": event}))
        memories[name].append(f"Around {hour} o'clock: {event}.")
    sector, areas = at[name]
    action = rng.choice(ACTIONS)
    options = ", ".join((person.home, *PLACES))
    choice = {
        "persona_name": name,
        "living_sector": person.home,
        "living_sector_areas": person.rooms,
        "current_sector": sector,
        "current_sector_areas": areas,
        "daily_plan": person.plan,
        "sector_options": options,
        "current_action": doing[name],
        "next_action": action,
    }
    calls.append((name, "action_location_sector", choice))
    target = likely_output("action_location_sector", choice)
    rooms = PLACES.get(target, person.rooms)
    calls.append(
        (
            name,
            "action_location_object",
            {
                "persona_name": name,
                "target_sector": target,
                "target_sector_areas": rooms,
                "current_action": doing[name],
                "next_action": action,
            },
        )
    )
    at[name], doing[name] = (target, rooms), action
    calls.append((name, "generate_pronunciatio", {"action": action}))
    calls.append((name, "generate_event_triple", {"persona_name": name, "action": action}))
    return calls
