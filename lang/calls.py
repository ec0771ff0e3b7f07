"""Sends a program's calls: each as soon as what stands before it is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from lang.backends.base import Backend, Call, CallError, Tags
from lang.capabilities import Feature, NotServed, features_of, features_of_select
from lang.output import Output, Trunk
from lang.primitives import Gen, Select
from lang.program_run import Awaited, ProgramRun
from lang.prompt import Piece, Prompt
from lang.sampling import Sampling
from lang.speculation import HINT, SERVED, Speculation, speculation_of

COMMON_PREFIX = 64
"""Characters from which the common prefix of a batch is worth a request of its own (SGLang's number)."""


class Calls:
    """Knows the calls under way. `wake` is told of each output that is finished."""

    def __init__(self, backend: Backend, wake: Callable[[Awaited], None]) -> None:
        self.open: dict[Call, Output] = {}
        self._backend = backend
        self._wake = wake
        self._held: list[Output] | None = None

    def submit(
        self,
        run: ProgramRun,
        expr: Gen | Select,
        prefix: tuple[Piece | Output, ...],
        where: tuple[str, int],
        trunk: Trunk | None = None,
        after: Output | None = None,
    ) -> Output:
        """Sends the call, or leaves it until the outputs before it are there.

        after: the output before it, with nothing but text between.

        Raises NotServed for what the backend can't do at all; whatever else goes wrong is the output's problem.
        """
        if run.finished:
            raise RuntimeError(f"program {run.name!r} is over: its state takes no more calls")
        sampling = run.sampling.over(expr.sampling) if isinstance(expr, Gen) else run.sampling
        speculation = None
        if run.num_api_spec_tokens and self._backend.speculates:
            said = after.speculation if after is not None else None
            speculation = speculation_of(expr, sampling, run.num_api_spec_tokens, said)
        if self._backend.capabilities.missing:
            self._check(run, expr, sampling, prefix, speculation)
        output = Output(expr, sampling, run, where, prefix, trunk, speculation)
        run.outputs.append(output)
        before = {piece: None for piece in prefix if isinstance(piece, Output) and not piece.finished}
        if before:
            output.n_awaited = len(before)
            for other in before:
                other.followers.append(output)
        elif self._held is not None:
            self._held.append(output)
        else:
            self.send(output)
        return output

    @contextmanager
    def together(self) -> Iterator[None]:
        """Calls made within are sent at its end; what all of them begin with is cached first."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            common = common_prefix([output.prefix for output in held])
            if len(held) > 1 and sum(len(piece) for piece in common.pieces if isinstance(piece, str)) > COMMON_PREFIX:
                self._backend.commit(common, held[0].run.tags)
            for output in held:
                self.send(output)
                if output.finished:
                    self.ended(output)

    def take(self, calls: Iterable[Call]) -> None:
        """The backend has finished these."""
        for call in calls:
            output = self.open.pop(call, None)
            if output is None:
                continue
            if call.error is not None:
                output.fail(CallError(f"{output.name} failed: {call.error}"))
            elif output.run.num_api_spec_tokens and not self._read(output, call):
                continue
            self.ended(output)

    def give_up(self, output: Output, why: str) -> None:
        """No effect on a finished one."""
        if output.finished:
            return
        if output.call is not None:
            self.open.pop(output.call, None)
            self._backend.abort(output.call)
        output.fail(CallError(f"{output.name} was given up: {why}"))
        self.ended(output)

    def _check(
        self,
        run: ProgramRun,
        expr: Gen | Select,
        sampling: Sampling,
        prefix: tuple[Piece | Output, ...],
        speculation: Speculation | None,
    ) -> None:
        """Raises NotServed."""
        prompt = Prompt(tuple("..." if isinstance(piece, Output) else piece for piece in prefix))
        if isinstance(expr, Gen):
            asked = features_of(prompt, sampling if speculation is None else speculation.asked)
        else:
            asked = features_of_select(prompt)
        for feature, what in asked:
            if feature is Feature.ASSISTANT_PREFIX and run.num_api_spec_tokens and self._backend.speculates:
                if speculation is not None and speculation.may_be_served:
                    continue  # `send` refuses it where it isn't
                what += HINT
            self._backend.capabilities.need(feature, what)

    def send(self, output: Output) -> None:
        """Everything before it is finished, or something failed. It may be finished itself after this: refused."""
        if output.finished:  # given up
            return
        run = output.run
        prefix, output.prefix = output.prefix, ()
        try:
            prompt = known(prefix)
            tags = run.tags if not run.calls else run.tags._replace(due=None)
            if output.speculation is not None and self._serve(output, output.speculation, prompt, tags):
                return
            if output.trunk is not None and not output.trunk.committed:
                self._commit(output.trunk, tags)
            self._ask(output, prompt, tags)
        except Lost as lost:
            output.fail(CallError(f"{output.name} wasn't sent: {lost.output.name} before it has no value"))
        except NotServed as error:
            why = output.speculation.unserved if output.speculation is not None else ""
            output.fail(NotServed(f"{output.name} couldn't be served without a call: {why}; {error}") if why else error)
        except Exception as error:
            output.fail(error)

    def _serve(self, output: Output, speculation: Speculation, prompt: Prompt, tags: Tags) -> bool:
        """Without a call, if what was said before has it."""
        text = speculation.serve(prompt)
        if text is None:
            return False
        said = prompt.text(self._backend.style)
        output.call = Call(name=output.expr.name, prompt=said, request=prompt, tags=tags, finished=True, partial=text)
        output.call.texts, output.call.meta = (text,), dict(SERVED)
        output.run.saved_calls += 1
        return True

    def _ask(self, output: Output, prompt: Prompt, tags: Tags) -> None:
        """Raises what the backend raises."""
        expr = output.expr
        if isinstance(expr, Gen):
            sampling = output.sampling if output.speculation is None else output.speculation.asked
            call = self._backend.generate(expr.name, prompt, sampling, tags)
        else:
            call = self._backend.score(expr.name, prompt, expr.choices, expr.method, tags)
        output.call = call
        if output.watched:
            self._backend.watch(call)
        self.open[call] = output
        owner: ProgramRun | None = output.run
        while owner is not None:
            owner.calls.append(call)
            owner = owner.parent

    def _read(self, output: Output, call: Call) -> bool:
        """What an over-long call said of its own gen. False: too much was said, and it is asked again."""
        speculation = output.speculation
        if speculation is None or not speculation.asks_long:
            call.meta["speculation"] = "plain"
            return True
        own = speculation.read(call)
        if speculation.answer is not None:
            output.run.long_answers.append(speculation.answer)
        if own is not None:
            output.call = own
            return True
        try:
            self._ask(output, speculation.prompt, call.tags)
        except Exception as error:
            output.fail(error)
            return True
        return False

    def _commit(self, trunk: Trunk, tags: Tags) -> None:
        trunk.committed = True
        self._backend.commit(known(trunk.pieces), tags)

    def ended(self, output: Output) -> None:
        """Sends what waited for it, and wakes the programs that do."""
        ended = deque([output])
        while ended:
            one = ended.popleft()
            self._wake(one)
            followers, one.followers = one.followers, []
            for follower in followers:
                follower.n_awaited -= 1
                if follower.n_awaited and one.problem is None:
                    continue
                self.send(follower)
                if follower.finished:
                    ended.append(follower)


class Lost(Exception):
    """An output in a prompt has no value."""

    def __init__(self, output: Output) -> None:
        self.output = output


def known(prefix: Sequence[Piece | Output]) -> Prompt:
    """The prompt, of finished outputs. Raises Lost when one failed."""
    lost = next((piece for piece in prefix if isinstance(piece, Output) and piece.problem is not None), None)
    if lost is not None:
        raise Lost(lost)
    return Prompt.of(piece.written if isinstance(piece, Output) else piece for piece in prefix)


def common_prefix(prefixes: Sequence[Sequence[Piece | Output]]) -> Prompt:
    """What all begin with."""
    pieces: list[Piece] = []
    for column in zip(*prefixes):
        first = column[0]
        if isinstance(first, Output):
            break
        if all(piece == first for piece in column):
            pieces.append(first)
            continue
        texts = [piece for piece in column if isinstance(piece, str)]
        if len(texts) == len(column):
            low, high = min(texts), max(texts)
            same = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), len(low))
            pieces.append(low[:same])
        break
    return Prompt.of(pieces)
