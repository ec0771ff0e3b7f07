"""A register of numbers under made-up names. The same for a seed."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

_FIRST_WORDS = """
amber azure brave brisk broad calm clear cold coral crisp dark deep dry dusty early faint fair fast fine firm fresh
gentle glad golden grand green grey happy hardy hollow humble icy ivory jolly keen kind late lean light lilac little
lively lone long loud lucky mellow merry mild misty narrow neat noble odd olive pale plain proud quick quiet rapid
rare ready red rosy rough round royal rusty safe sandy sharp shy silent silver simple sleepy slim slow small smooth
snowy soft solid steady still strong sunny swift tall tame tender thin tidy tiny warm wide wild wise young
"""
FIRST = tuple(_FIRST_WORDS.split())
_SECOND_WORDS = """
acorn anchor apple arrow badger barrel basket beacon bell birch bottle branch bridge brook button cabin candle
canyon castle cedar chair cherry cliff cloud clover comet cradle crane creek crown daisy dune eagle ember falcon
feather fern field finch flute forest fox garden gate glacier goose harbor hazel hedge heron hill island ivy jacket
kettle ladder lake lantern lark leaf lemon linen lion lodge maple marsh meadow mill mirror moon moth mountain needle
nest oak ocean orchard otter owl paddle pebble pepper pillow pine plum pond poplar quill rabbit raven reed ribbon
river robin rose saddle sail salmon shell shore sparrow spoon spruce star stone storm stream swan table thistle
tiger tower trout tulip tunnel valley violin wagon walnut water willow window winter wolf wren
"""
SECOND = tuple(_SECOND_WORDS.split())
MOST_LINES = len(FIRST) * len(SECOND)


class Line(NamedTuple):
    name: str
    number: str
    """Five digits."""

    @property
    def text(self) -> str:
        return f"Register {self.name} holds {self.number}.\n"


def made_lines(n: int, seed: str) -> list[Line]:
    """Names are all different; numbers too, as long as there are enough. n: at most MOST_LINES."""
    rng = random.Random(f"lines/{seed}")
    names = rng.sample(range(MOST_LINES), n)
    numbers = rng.sample(range(10_000, 100_000), n)
    return [
        Line(f"{FIRST[i // len(SECOND)]}-{SECOND[i % len(SECOND)]}", str(number)) for i, number in zip(names, numbers)
    ]


def cut_in(lines: list[Line], n_parts: int) -> list[list[Line]]:
    """n_parts parts of equal length, but for a line; the longer ones first."""
    size, more = divmod(len(lines), n_parts)
    starts = [i * size + min(i, more) for i in range(n_parts + 1)]
    return [lines[a:b] for a, b in itertools.pairwise(starts)]
