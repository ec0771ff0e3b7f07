"""Generated traffic as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.base import DataSource, Job, Outputs, Workload
from workloads.data import DataError, digest
from workloads.exact_text import ExactText
from workloads.sources import need_at_least, need_one_of
from workloads.synthetic.laws import ARRIVALS, Lengths
from workloads.synthetic.program import Said, rounds
from workloads.synthetic.traffic import Law, Script, endless_hit_rate, plans, within, written


class Synthetic(Workload):
    """`n_programs` programs of a stated law (README): conversations, and a share `agents` of agent loops.

    Lengths are exact in the model's own tokens: texts, and recorded outputs, are words of one token each.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        n_programs: int = 120,
        seed: int = 0,
        arrivals: str = "poisson",
        rate_per_s: float = 3.0,
        cv: float = 3.0,
        on_s: float = 5.0,
        off_s: float = 15.0,
        n_prefixes: int = 20,
        alpha: float = 1.0,
        prefix_tokens: float = 300,
        prefix_cv: float = 0.5,
        turns: float = 3.0,
        message_tokens: float = 60,
        message_cv: float = 1.0,
        think_s: float = 2.0,
        agents: float = 0.25,
        steps: float = 5.0,
        tool_tokens: float = 80,
        tool_cv: float = 1.0,
        tool_s: float = 0.5,
        output_tokens: float = 24,
        output_cv: float = 1.0,
        max_context_tokens: int | None = 4096,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("arrivals", arrivals, ARRIVALS)
        need_at_least(
            n_programs=(n_programs, 1), n_prefixes=(n_prefixes, 0), max_context_tokens=(max_context_tokens, 2)
        )
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed={seed!r} is not allowed: it must be a whole number")
        for least, values in {
            0.0: {
                "alpha": alpha,
                "prefix_cv": prefix_cv,
                "message_cv": message_cv,
                "tool_cv": tool_cv,
                "output_cv": output_cv,
                "think_s": think_s,
                "tool_s": tool_s,
                "off_s": off_s,
                "agents": agents,
            },
            0.001: {"rate_per_s": rate_per_s, "cv": cv, "on_s": on_s},
            1.0: {
                "prefix_tokens": prefix_tokens,
                "message_tokens": message_tokens,
                "tool_tokens": tool_tokens,
                "output_tokens": output_tokens,
                "turns": turns,
                "steps": steps,
            },
        }.items():
            for name, value in values.items():
                if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < 1e9:
                    raise ValueError(f"{name}={value!r} is not allowed: it must be a number, {least:g} or more")
        if agents > 1:
            raise ValueError(f"agents={agents!r} is not allowed: it is a share of the programs, from 0 to 1")
        self.law = Law(
            arrivals=arrivals,
            rate_per_s=rate_per_s,
            cv=cv,
            on_s=on_s,
            off_s=off_s,
            n_prefixes=n_prefixes,
            alpha=alpha,
            prefix=Lengths(prefix_tokens, prefix_cv),
            turns=turns,
            message=Lengths(message_tokens, message_cv),
            think_s=think_s,
            agents=agents,
            steps=steps,
            tool=Lengths(tool_tokens, tool_cv),
            tool_s=tool_s,
            output=Lengths(output_tokens, output_cv),
        )
        self.n_programs = n_programs
        self.seed = seed
        self.max_context_tokens = max_context_tokens
        self.asked_outputs = outputs
        self.scripts: list[Script] = []
        """The programs in words, after `load`."""
        self.endless_hit_rate = 0.0
        """What a cache without an end would find, one program at a time."""
        self._jobs: list[Job] = []

    def load(self) -> None:
        """Raises TextError where the tokenizer has no words of one token, DataError when nothing fits."""
        text = ExactText(self.count_tokens)
        whole = written(plans(self.law, self.n_programs, self.seed), self.law, self.seed, text)
        fitting = [within(script, text.opening, self.max_context_tokens) for script in whole]
        self.scripts = [script for script in fitting if script.turns]
        if not self.scripts:
            raise DataError(f"max_context_tokens={self.max_context_tokens} leaves no call of any program; raise it")
        self._jobs = [self._job(i, script, text) for i, script in enumerate(self.scripts)]
        self.endless_hit_rate = endless_hit_rate(self.scripts, text.opening)
        cut = sum(len(one.turns) for one in whole) - sum(len(one.turns) for one in fitting)
        left_out = f"; {cut} calls of more than {self.max_context_tokens} tokens are left out" if cut else ""
        told = f"an endless cache finds {self.endless_hit_rate:.1%} of the prompt tokens, program by program{left_out}"
        words = "\n".join(turn.text for job in self._jobs for turn in job.args["turns"])
        self.data = DataSource("sample", "", digest({"sample": words.encode()}), f"generated, not recorded: {told}")

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Prompts of our own, with another beginning and in their own namespace."""
        return [
            Job(
                program=rounds,
                args={"turns": [Said(0.0, "Warm-up: " + "count on, " * n, " and on", 2)]},
                name=f"warmup/{n}",
                namespace="warmup",
                outputs=self.outputs,
            )
            for n in (20, 40, 80, 160)
        ]

    def _job(self, i: int, script: Script, text: ExactText) -> Job:
        """Raises TextError when the tokenizer merges any of it, counted over the whole of what is said."""
        name = f"synthetic/{i}"
        text.joined([word for turn in script.turns for word in (*turn.text, *turn.output)], name)
        turns = [
            Said(turn.pause_s, "".join(turn.text), "".join(turn.output), len(turn.output)) for turn in script.turns
        ]
        return Job(
            program=rounds,
            args={"turns": turns},
            name=name,
            at=script.plan.at,
            conversation=name,
            outputs=self.outputs,
        )
