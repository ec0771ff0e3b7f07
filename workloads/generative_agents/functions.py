"""The five functions that make about 70 % of the calls of Generative Agents: prompts in words of ours.

Names of functions and arguments, most output tokens and stops are those of SGLang's trace. As there, instruction and
examples stand before what changes, but for the poignancy of an event, where the agent's description stands first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TRIPLE_EXAMPLES = """\
Write what somebody does as (who, does, what).
Somebody: Nora Vale is baking rolls.
Written: (Nora Vale, bake, rolls)
--
Somebody: Otto Brand is asleep.
Written: (Otto Brand, is, asleep)
--
Somebody: Pia Lund is writing a letter to her aunt.
Written: (Pia Lund, write, letter)
--
Somebody: Rolf Stein is teaching the younger children.
Written: (Rolf Stein, teach, children)
--
Somebody: Tess Marlow is walking round the pond.
Written: (Tess Marlow, walk round, pond)
--
"""
SECTOR_EXAMPLES = """\
Say where in town somebody has to go for what comes next.
Nora Vale lives in {Vale's house}, where there are: kitchen, bedroom, bathroom.
Nora Vale is now in {Vale's house}, where there are: kitchen, bedroom, bathroom.
Places: {Vale's house, The Anchor Inn, Bakery, School, Town Park, Hardware Shop, Pharmacy}
- Who can do it where they are stays there.
- The answer is one of the places, letter for letter.
For a walk before supper Nora Vale goes to: {Town Park}
--
Otto Brand lives in {Students' House}, where there are: Otto's room.
Otto Brand is now in {School}, where there are: classroom, library.
Places: {Students' House, The Anchor Inn, Bakery, School, Town Park, Hardware Shop, Pharmacy}
- Who can do it where they are stays there.
- The answer is one of the places, letter for letter.
For a pot of soup Otto Brand goes to: {The Anchor Inn}
--
"""
OBJECT_EXAMPLES = """\
Say into which room somebody has to go for what comes next.
Nora Vale is going to Vale's house, where there are: {kitchen, bedroom, bathroom}
- Who can do it where they are stays there. Nobody enters another's room without need.
For frying an egg Nora Vale goes to this room of Vale's house: {kitchen}
--
Otto Brand is going to The Anchor Inn, where there are: {taproom}
- Who can do it where they are stays there. Nobody enters another's room without need.
For a pot of soup Otto Brand goes to this room of The Anchor Inn: {taproom}
--
"""


class Function(NamedTuple):
    arguments: tuple[str, ...]
    max_tokens: int
    stop: str | None
    template: str
    """For `str.format`."""


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


FUNCTIONS: Mapping[str, Function] = {
    "poignancy_event": Function(
        ("persona_name", "persona_iss", "event"),
        2,
        None,
        "This is who {persona_name} is.\n{persona_iss}\n"
        "From 1 (an everyday matter, such as washing up) to 10 (something that changes a life, such as a wedding): how "
        "much does what has happened move {persona_name}?\n\nWhat has happened: {event}\n"
        "Answer with a number from 1 to 10:",
    ),
    "generate_event_triple": Function(
        ("persona_name", "action"),
        20,
        ")",
        _literal(TRIPLE_EXAMPLES) + "Somebody: {persona_name} is {action}.\nWritten: ({persona_name},",
    ),
    "generate_pronunciatio": Function(
        ("action",),
        6,
        None,
        "Show what somebody does by an emoji, or by two, and no more.\nWhat: {action}\nEmoji:",
    ),
    "action_location_sector": Function(
        (
            "persona_name",
            "living_sector",
            "living_sector_areas",
            "current_sector",
            "current_sector_areas",
            "daily_plan",
            "sector_options",
            "current_action",
            "next_action",
        ),
        10,
        "}",
        _literal(SECTOR_EXAMPLES) + "{persona_name} lives in {{{living_sector}}}, where there are: "
        "{living_sector_areas}.\n{persona_name} is now in {{{current_sector}}}, where there are: "
        "{current_sector_areas}.\n{daily_plan}\nPlaces: {{{sector_options}}}\n"
        "- Who can do it where they are stays there.\n- The answer is one of the places, letter for letter.\n"
        "{persona_name} is {current_action} now. For {next_action} {persona_name} goes to: {{",
    ),
    "action_location_object": Function(
        ("persona_name", "target_sector", "target_sector_areas", "current_action", "next_action"),
        5,
        "}",
        _literal(OBJECT_EXAMPLES) + "{persona_name} is going to {target_sector}, where there are: "
        "{{{target_sector_areas}}}\n- Who can do it where they are stays there. Nobody enters another's room without "
        "need.\n{persona_name} is {current_action} now. For {next_action} {persona_name} goes to this room of "
        "{target_sector}: {{",
    ),
}
"""By the name that the trace has."""


def prompt_of(function: str, arguments: Mapping[str, str]) -> str:
    return FUNCTIONS[function].template.format(**arguments)


def likely_output(function: str, arguments: Mapping[str, str]) -> str:
    """What may have come out, where a trace doesn't say: by rule, from the arguments."""
    match function:
        case "poignancy_event":
            return f" {1 + len(arguments['event']) % 9}"
        case "generate_event_triple":
            verb, _, rest = arguments["action"].strip().partition(" ")
            return f" {verb}, {rest or verb}"
        case "generate_pronunciatio":
            return (" ☕", " 📚", " 🚶", " 🛠", " 🌱")[len(arguments["action"]) % 5]
        case "action_location_sector":
            return _one_of(arguments["sector_options"], arguments["next_action"])
    return _one_of(arguments["target_sector_areas"], arguments["next_action"])


def _one_of(options: str, what_for: str) -> str:
    listed = [one.strip() for one in options.strip(" {}").split(",") if one.strip()]
    return listed[len(what_for) % len(listed)] if listed else options.strip() or "here"
