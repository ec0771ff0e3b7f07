"""Line retrieval as a workload."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import DataSource, Job, Outputs, Score, Workload
from workloads.line_retrieval.program import line_retrieval
from workloads.sources import need_at_least, need_one_of

_FIRST = (
    *("torpid", "quiet", "amber", "hollow", "brisk", "mellow"),
    *("rapid", "stony", "gentle", "woolen", "crooked", "lively"),
)
_SECOND = (
    *("kid", "river", "lantern", "meadow", "harbor", "sparrow"),
    *("anvil", "garden", "mirror", "saddle", "willow", "kettle"),
)


class LineRetrieval(Workload):
    """Registers of `n_lines` lines in `n_segments` segments, each asked about `n_questions` times."""

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        n_registers: int = 2,
        n_lines: int = 300,
        n_segments: int = 4,
        n_questions: int = 10,
        encoding: str = "concatenated",
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("encoding", encoding, ("concatenated", "plain"))
        need_at_least(n_registers=(n_registers, 1), n_lines=(n_lines, 1), n_segments=(n_segments, 1))
        need_at_least(n_questions=(n_questions, 1))
        if n_segments > n_lines:
            raise ValueError(f"n_segments={n_segments} is not allowed: there are only n_lines={n_lines}")
        self.n_registers = n_registers
        self.n_lines = n_lines
        self.n_segments = n_segments
        self.n_questions = n_questions
        self.encoding = encoding
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._numbers: dict[str, str] = {}

    def load(self) -> None:
        self.data = DataSource("made", note=f"registers made from seed {self.seed}")
        self._jobs, self._numbers = [], {}
        for i in range(self.n_registers):
            lines = register(self.n_lines, random.Random(f"{self.seed}/{i}"))
            parts = cut(lines, self.n_segments)
            asked = random.Random(f"{self.seed}/{i}/asked").sample(list(lines), min(self.n_questions, len(lines)))
            for j, name in enumerate(asked):
                job = self._job(f"line_retrieval/{i}/{j}", parts, name, lines[name])
                self._jobs.append(job)
                self._numbers[job.name] = lines[name]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """A short register, in a namespace of its own."""
        lines = register(max(8, self.n_segments), random.Random("warm-up"))
        name = next(iter(lines))
        return [self._job("warmup/0", cut(lines, self.n_segments), name, lines[name], "warmup")]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the numbers that are right; a failed run counts as wrong."""
        if not finished:
            return None
        right = sum(run.status == "done" and run.state.ret_value == self._numbers[run.name] for run in finished)
        return Score("accuracy", right / len(finished), len(finished))

    def _job(self, name: str, parts: Sequence[str], asked: str, number: str, namespace: str = "") -> Job:
        args = {"parts": parts, "name": asked, "number": number, "concatenated": self.encoding == "concatenated"}
        return Job(program=line_retrieval, args=args, name=name, namespace=namespace, outputs=self.outputs)


def register(n_lines: int, rng: random.Random) -> dict[str, str]:
    """Name of a line -> its number of five digits. No name is there twice."""
    found: dict[str, str] = {}
    while len(found) < n_lines:
        name = f"{rng.choice(_FIRST)}-{rng.choice(_SECOND)}"
        if name in found or len(found) >= len(_FIRST) * len(_SECOND) // 2:
            name = f"{name}-{len(found)}"
        found[name] = str(rng.randint(10000, 99999))
    return found


def cut(lines: dict[str, str], n_segments: int) -> list[str]:
    """The register's text in so many segments of whole lines."""
    told = [f"line {name}: the number is <{number}>\n" for name, number in lines.items()]
    ends = [len(told) * (i + 1) // n_segments for i in range(n_segments)]
    return ["".join(told[begin:end]) for begin, end in zip([0, *ends], ends)]
