"""What the language asks of whatever answers its calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lang.capabilities import Capabilities, NotServed
from lang.choices import ChoicesMethod
from lang.hints import Hint
from lang.prompt import PLAIN, ChatStyle, Prompt
from lang.sampling import Sampling
from lang.tools import ToolCall

NOTHING = Prompt()


class Clock(Protocol):
    """Seconds."""

    def now(self) -> float: ...
    def sleep_until(self, when: float) -> None: ...


class CallError(RuntimeError):
    """A call failed after it was accepted. The message names the variable and says why."""


class Tags(NamedTuple):
    """Whose call it is; engines and their policies look at it."""

    program: str = ""
    client: str = ""
    conversation: str = ""
    namespace: str = ""
    priority: int = 0
    due: float | None = None
    """Seconds: when the call was due; None: now."""
    agent: str = ""
    """The program that makes the call, where another runs it: `program` names the outer one."""
    siblings: int = 1
    """How many calls were submitted together, this one included: one for each branch of a fork, or run of a batch."""
    parent: int | None = None
    """The request (as `commit` named it) that computes what the siblings begin with."""


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One `gen` or `select` of a program: what was asked, and what came of it."""

    name: str | None
    """The variable."""
    prompt: str
    """As text, roles written in the backend's style."""
    request: Prompt = NOTHING
    """The same, not yet written out."""
    tags: Tags
    finished: bool = False
    partial: str = ""
    """The output so far (of the first sample), where it streams. It only grows, and `text` begins with it."""
    texts: tuple[str, ...] = ()
    """The output: one text, or one for each of n samples. A select's is the choice taken."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the model asked to be called; the output's text is what stands around the calls."""
    written: str | None = None
    """What stands in the prompt that goes on, where that isn't the text: calls of tools included, say."""
    logprobs: Any = None
    """Where they were asked for: a list of `TokenLogprob`, one a token of the first sample."""
    meta: dict[str, Any] = field(default_factory=dict)
    """prompt_tokens, cached_tokens, completion_tokens (sums over its requests), finish_reason; a select adds
    choices, normalized_prompt_logprobs (mean a token, one a choice) and input_token_logprobs. In programs with
    num_api_spec_tokens also speculation: plain, asked (for more than this gen) or served (of what was said before)."""
    sample_meta: tuple[dict[str, Any], ...] = ()
    """For n > 1, where the backend knows it: the meta info that each sample would have alone."""
    error: str | None = None
    owner: Any = None
    """Who made it and waits for it (`lang.calls.Calls`)."""
    requests: list[Any] = field(default_factory=list)
    """The backend's own records, in the order submitted: `engine.request.Request` for the engine."""

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""


class TokenLogprob(NamedTuple):
    """One output token: its text, its id (None where the backend tells none), its log-probability (natural)."""

    text: str
    token: int | None
    logprob: float
    top: tuple[tuple[str, int | None, float], ...] = ()
    """The likeliest (text, id, log-probability), likeliest first."""


class Backend(Protocol):
    """Accepts calls at once and works on all of them, one `step` at a time. One thread. Subclass it."""

    clock: Clock
    capabilities: Capabilities
    style: ChatStyle = PLAIN
    speculates: bool = False
    """Calls cost so much that one over-long call for several gens (`num_api_spec_tokens`) is worth it: over a network,
    where each sends its whole prompt again. Elsewhere programs make plain calls, whose prompts are cached."""

    @property
    def identity(self) -> str:
        """Names what answers, its model included: what was measured with it holds for it alone."""
        return self.capabilities.backend

    @abstractmethod
    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        """Queues a generation. Raises ValueError, and queues nothing, when it can't be served."""

    @abstractmethod
    def score(
        self, name: str | None, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod, tags: Tags
    ) -> Call:
        """Queues the scoring of all `choices` after `prompt`. Raises as `generate` does."""

    @abstractmethod
    def step(self) -> list[Call]:
        """Does a little of the work; the calls that ended since the last step, in an order that can be repeated."""

    @abstractmethod
    def abort(self, call: Call) -> None:
        """Gives the call up; it is never returned by `step` after this. A finished call is left alone."""

    def watch(self, call: Call) -> None:
        """Somebody reads the call's `partial` from now on. Backends that fill it in anyway needn't care."""

    def commit(self, prompt: Prompt, tags: Tags) -> int | None:
        """Calls with this prefix follow: have it cached first. By default nothing happens.

        Returns the number of the request that computes it, for `Tags.parent`; None where there is none.
        """
        return None

    def hint(self, hint: Hint, tags: Tags) -> None:
        """Tells what is known of calls to come. It is advice and changes no answer: by default it is left."""
        return

    def notify(self, tell: Callable[[], None] | None) -> bool:
        """Has `tell` called, from any thread, when there is something for `step` to return; None: no more.

        False, the default: it works only while it is stepped.
        """
        return False

    def rest(self) -> float:
        """Seconds for which `step` would only sleep, so that whoever has something else to do can do it meanwhile."""
        return 0.0

    def flush_cache(self) -> None:
        """Forgets cached prefixes that no call under way uses. Raises NotServed where there is no cache to flush."""
        name = self.capabilities.backend
        raise NotServed(f"flush_cache() isn't served by {name}: its cache, if it has one, is its own business")
