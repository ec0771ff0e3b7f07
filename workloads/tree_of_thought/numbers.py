"""The Game of 24: four numbers, each used once, + - * /, to give 24. Exact, with fractions."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

TARGET = Fraction(24)
Numbers = tuple[Fraction, ...]
"""Ascending."""
_STEP = re.compile(r"^\s*(?P<done>.+?)\s*=\s*(?P<result>[^=()]+?)\s*\(left:\s*(?P<left>[^)]*(?:\([^)]*\)[^)]*)*)\)\s*$")


class Step(NamedTuple):
    """One operation, as a line: `10 - 4 = 6 (left: 5 6 6)`."""

    line: str
    left: Numbers


def as_numbers(text: str) -> Numbers:
    """Of numbers between blanks (2, -1, 1.5, 2/3). Raises ValueError for anything else."""
    try:
        return tuple(sorted(Fraction(part) for part in text.replace("(", " ").replace(")", " ").split()))
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} holds a division by zero") from error


def written(numbers: Sequence[Fraction]) -> str:
    return " ".join(map(str, numbers))


def steps_from(numbers: Numbers) -> Iterator[Step]:
    """Every operation on two of the numbers, each result once."""
    seen: set[Numbers] = set()
    for i in range(len(numbers)):
        for j in range(i):
            b, a = numbers[j], numbers[i]  # a >= b
            rest = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
            results = [(f"{b} + {a}", a + b), (f"{b} * {a}", a * b), (f"{a} - {b}", a - b), (f"{b} - {a}", b - a)]
            results += [(f"{a} / {b}", a / b)] if b else []
            results += [(f"{b} / {a}", b / a)] if a else []
            for done, result in results:
                left = tuple(sorted([*rest, result]))
                if left not in seen:
                    seen.add(left)
                    yield Step(f"{done} = {result} (left: {written(left)})", left)


@functools.cache
def can_be_24(numbers: Numbers) -> bool:
    """Whether some way of using all of them gives 24."""
    if len(numbers) == 1:
        return numbers[0] == TARGET
    return any(can_be_24(step.left) for step in steps_from(numbers))


def parsed_step(line: str, before: Numbers) -> Step | None:
    """The step that a line of a model's says; None when it isn't one whose numbers follow from `before`."""
    found = _STEP.match(line)
    if found is None:
        return None
    try:
        left = as_numbers(found["left"])
    except ValueError:
        return None
    possible = {step.left for step in steps_from(before)}
    return Step(line.strip(), left) if left in possible else None


def gives_24(expression: str, puzzle: str) -> bool:
    """Whether it is made of the puzzle's numbers, each once, with + - * / and brackets, and gives 24."""
    text = expression.split("=")[0].strip()
    try:
        tree = ast.parse(text, mode="eval").body
        used: list[int] = []
        value = _value(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == TARGET and Counter(map(Fraction, used)) == Counter(as_numbers(puzzle))


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """Raises ValueError for anything but whole numbers and the four operations."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left, used), _value(node.right, used)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return a / b
    raise ValueError(f"not allowed: {ast.dump(node)}")


def solution(numbers: Numbers) -> str | None:
    """An expression of all of them that gives 24."""
    return _solved(tuple((number, str(number)) for number in numbers))


def _solved(terms: tuple[tuple[Fraction, str], ...]) -> str | None:
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == TARGET else None
    for i in range(len(terms)):
        for j in range(len(terms)):
            if i == j:
                continue
            (a, left), (b, right) = terms[i], terms[j]
            rest = tuple(term for k, term in enumerate(terms) if k not in (i, j))
            made = [(a - b, f"({left} - {right})")] + ([(a / b, f"({left} / {right})")] if b else [])
            made += [(a + b, f"({left} + {right})"), (a * b, f"({left} * {right})")] if i < j else []
            for term in made:
                if found := _solved((term, *rest)):
                    return found
    return None
