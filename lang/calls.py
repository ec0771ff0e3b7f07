"""Sends a program's calls: each as soon as what stands before it is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from lang.backends.base import Backend, Call, CallError, Tags
from lang.capabilities import Feature, NotServed, features_of, features_of_select
from lang.output import Output, Source, Trunk, resolved
from lang.primitives import Gen, Select
from lang.program_run import Awaited, ProgramRun
from lang.prompt import Piece, Prompt
from lang.sampling import Sampling
from lang.speculation import HINT, SERVED, Speculation, speculation_of

COMMON_PREFIX = 64
"""Characters from which the common prefix of a batch is worth a request of its own (SGLang's number)."""


def _nobody() -> None: ...


class Group:
    """Calls that are held back until those of other runs have come too."""

    def __init__(self) -> None:
        self.open = True
        self.held: list[Output] = []


class Calls:
    """Knows the calls under way. `wake` is told of each output that is finished."""

    def __init__(self, backend: Backend, wake: Callable[[Awaited], None]) -> None:
        self.open: dict[Call, Output] = {}
        self._backend = backend
        self._wake = wake
        self.gathering: Group | None = None
        """What runs that are made now belong to."""
        self.mail: list[Call] = []
        """Finished calls that somebody else's step of the same backend gave."""
        self.stirred: Callable[[], None] = _nobody
        """Called when a call is sent, or comes by mail."""

    def submit(
        self,
        run: ProgramRun,
        expr: Gen | Select,
        prefix: tuple[Piece | Output, ...],
        where: tuple[str, int],
        trunk: Trunk | None = None,
        kin: Trunk | None = None,
        source: Source | None = None,
        after: Output | None = None,
    ) -> Output:
        """Sends the call, or leaves it until the outputs before it are there. With a source there is no call.

        after: the output before it, with nothing but text between.

        Raises NotServed for what the backend can't do at all; whatever else goes wrong is the output's problem.
        """
        if run.finished:
            raise RuntimeError(f"program {run.name!r} is over: its state takes no more calls")
        sampling = run.sampling.over(expr.sampling) if isinstance(expr, Gen) else run.sampling
        speculation = None
        if run.num_api_spec_tokens and self._backend.speculates and source is None:
            said = after.speculation if after is not None else None
            speculation = speculation_of(expr, sampling, run.num_api_spec_tokens, said)
        if self._backend.capabilities.missing and source is None:
            self._check(run, expr, sampling, prefix, speculation)
        kin = run.kin if kin is None and not run.outputs else kin
        output = Output(expr, sampling, run, where, prefix, trunk, kin, source, speculation)
        run.outputs.append(output)
        needed = prefix if source is None else (source.output,)
        before = {piece: None for piece in needed if isinstance(piece, Output) and not piece.finished}
        if before:
            output.n_awaited = len(before)
            for other in before:
                other.followers.append(output)
        elif run.group is not None and run.group.open:
            run.group.held.append(output)
        else:
            self.send(output)
        return output

    @contextmanager
    def together(self) -> Iterator[None]:
        """Calls of runs made within are sent at its end; what all of them begin with is cached first."""
        with self.grouped() as group:
            try:
                yield
            finally:
                self.release(group)

    @contextmanager
    def grouped(self) -> Iterator[Group]:
        """Runs made within hold back their calls until the group is released."""
        before, self.gathering = self.gathering, Group()
        try:
            yield self.gathering
        finally:
            self.gathering = before

    def release(self, group: Group) -> None:
        """Sends the calls held; what all of them begin with is cached first."""
        held, group.open = group.held, False
        common = common_prefix([output.prefix for output in held])
        kin = Trunk(common.pieces, n=sum(output.kin is None for output in held))
        if len(held) > 1 and sum(len(piece) for piece in common.pieces if isinstance(piece, str)) > COMMON_PREFIX:
            self._commit(kin, held[0].run.tags)
        for output in held:
            output.kin = output.kin or kin
            self.send(output)
            if output.finished:
                self.ended(output)

    def step(self) -> None:
        """Takes what came by mail, else what a step of the backend gives."""
        mail, self.mail = self.mail, []
        self._take(mail or self._backend.step())

    def _take(self, calls: Iterable[Call]) -> None:
        """The backend has finished these. Those that others made and wait for are sent on to them."""
        for call in calls:
            output = self.open.pop(call, None)
            if output is None:
                if call.owner is not None and call.owner is not self:
                    call.owner.mail.append(call)
                    call.owner.stirred()
                continue
            if call.error is not None:
                output.fail(CallError(f"{output.name} failed: {call.error}"))
            elif output.run.num_api_spec_tokens and not self._read(output, call):
                continue
            elif isinstance(output.expr, Select) and output.expr.recorded is not None and _is_forced(output):
                call.texts = (output.expr.recorded,)
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
        prompt = Prompt(tuple(["..." if isinstance(piece, Output) else piece for piece in prefix]))
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
        if output.source is not None:
            output.take(output.source)
            return
        try:
            prompt = known(prefix)
            tags = run.tags if not run.calls else run.tags._replace(due=None)
            if output.speculation is not None and self._serve(output, output.speculation, prompt, tags):
                return
            if output.trunk is not None and not output.trunk.committed:
                self._commit(output.trunk, tags)
            if output.kin is not None:
                tags = tags._replace(siblings=output.kin.n, parent=output.kin.request)
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
        output.call, call.owner = call, self
        if output.watched:
            self._backend.watch(call)
        self.open[call] = output
        owner: ProgramRun | None = output.run
        while owner is not None:
            owner.calls.append(call)
            owner = owner.parent
        self.stirred()

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
        trunk.request = self._backend.commit(known(trunk.pieces), tags)

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


def _is_forced(output: Output) -> bool:
    return output.run.sampling.outputs != "free"


class Lost(Exception):
    """An output in a prompt has no value."""

    def __init__(self, output: Output) -> None:
        self.output = output


def known(prefix: Sequence[Piece | Output]) -> Prompt:
    """The prompt, of finished outputs. Raises Lost when one failed."""
    lost = next((piece for piece in prefix if isinstance(piece, Output) and piece.problem is not None), None)
    if lost is not None:
        raise Lost(lost)
    return Prompt.of(resolved(prefix))


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
