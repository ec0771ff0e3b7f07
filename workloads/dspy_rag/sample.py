"""A library of inventors, workshops and valleys of our own, and questions that take two of its pages to answer."""

from __future__ import annotations

import random

FIRST = ("Ada", "Bruno", "Clea", "Dario", "Elin", "Fritz", "Gala", "Hugo", "Ines", "Jonas", "Kaja", "Leon")
LAST = ("Abell", "Brandt", "Corvin", "Dahl", "Ekman", "Farrow", "Grant", "Holm", "Iversen", "Jansen", "Kerr", "Lowe")
VALLEYS = ("Ashdale", "Birkenau", "Cressing", "Dornwell", "Elmstead", "Fairlow", "Glenmoor", "Hartwick", "Inverlee")
THINGS = ("water clock", "wind pump", "seed drill", "paper press", "bell harp", "glass loom", "salt kiln", "kite mast")
GUILDS = ("the Guild of Millers", "the Brass Society", "the Lantern Club", "the Company of Surveyors")

Row = tuple[str, str, tuple[str, ...]]
"""Question, answer, the facts that lead from one to the other."""
Call = tuple[str, str, int]
"""Prompt, output, most tokens."""

ASK = "Answer the question with a few words."
SEARCH = "Write what to search for to get nearer to the answer."


def _world(seed: str, n: int) -> tuple[list[Row], list[str]]:
    """Two questions for each of n people; a page for each person and each workshop."""
    rng = random.Random(seed)
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], n)
    rows: list[Row] = []
    pages: list[str] = []
    for name in names:
        last = name.split()[1]
        born, thing, valley = rng.randint(1710, 1890), rng.choice(THINGS), rng.choice(VALLEYS)
        workshop, guild = f"{last} {rng.choice(('Works', 'Yard', 'Forge'))} of {name.split()[0]}", rng.choice(GUILDS)
        opened, workers = born + rng.randint(22, 40), rng.randint(4, 90)
        invented = f"{name} (born {born}) was an inventor who is remembered for the first {thing} of the country."
        worked = f"All models of it were built at {workshop}."
        lies = f"{workshop} was a workshop in the valley of {valley}, opened in {opened}."
        size = f"At its best time it gave work to {workers} people."
        pages.append(
            f"{name} | {invented} {worked} {last} was a member of {guild} and wrote two books about the {thing}, of "
            f"which one is lost. The other was printed again in {born + 120} with drawings by a nephew."
        )
        pages.append(
            f"{workshop} | {lies} {size} It burned down {rng.randint(9, 60)} years later; only its chimney is left, on "
            f"which storks have been nesting since. The valley's museum has {rng.randint(2, 30)} of its tools."
        )
        rows.append((f"In which valley were the models of the {thing} by {name} built?", valley, (worked, lies)))
        rows.append(
            (f"How many people worked at the workshop where {name} had models built?", str(workers), (worked, size))
        )
    rng.shuffle(rows)
    rng.shuffle(pages)
    return rows, pages


def sample_library() -> tuple[list[Row], list[str]]:
    """44 questions, 44 passages of 40 to 60 words."""
    return _world("dspy rag sample", 22)


def warmup_library() -> tuple[list[Row], list[str]]:
    """12 questions about other people."""
    return _world("dspy rag warm-up", 6)


def sample_calls() -> list[Call]:
    """As of two programs: for each question one call that asks what to search for, and one that answers."""
    rows, pages = sample_library()
    rng = random.Random("dspy rag calls")
    shown = "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer, _ in rows[:8])
    calls: list[Call] = []
    for question, answer, facts in rows[8:]:
        context = "\n".join(f"[{i + 1}] {page}" for i, page in enumerate(rng.sample(pages, 2)))
        shape = "Context: what was found\nQuestion: what is asked\nReasoning: one step after another"
        asked = f"Context:\n{context}\nQuestion: {question}\nReasoning:"
        calls.append((f"{SEARCH}\n\n---\n\n{shape}\nSearch: some words\n\n---\n\n{asked}", f" {facts[0]}", 150))
        calls.append(
            (
                f"{ASK}\n\n---\n\n{shown}\n\n---\n\n{shape}\nAnswer: a few words\n\n---\n\n{asked}",
                f" {' '.join(facts)}\nAnswer: {answer}",
                150,
            )
        )
    return calls
