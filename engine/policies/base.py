"""The plugin interfaces: what a policy is told, what it may ask, what it decides.

Standard library only. Every hook has a default, so a policy writes only what it needs.
A policy never decides what *may* be evicted (an unlocked leaf, from its end, page by page): that is the engine's
business.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol


class PolicyError(RuntimeError):
    """A policy can't be made, broke its contract, or raised. The message names the policy and the hook."""


def broken(policy: object, hook: str, what: str) -> PolicyError:
    """The error for a policy whose `hook` did `what`."""
    return PolicyError(f"policy {type(policy).__module__}.{type(policy).__qualname__}: {hook}: {what}")


class Node(Protocol):
    """One edge of the tree. A policy writes only `slot`."""

    id: int
    n_children: int
    locks: int
    """Requests that hold the node itself, plus children that are locked."""
    start: int
    """Tokens before it on its path."""
    n_tokens: int
    """Tokens in it. A node never grows: new tokens are a new child."""

    @property
    def parent(self) -> Node | None: ...
    @property
    def page_keys(self) -> Sequence[int]:
        """Chain hash of each page: the same after a split, an eviction and a return (ghost lists need it)."""

    inserted_seq: int
    used_seq: int
    inserted_at: float
    used_at: float
    hits: int
    slot: Any


class Leaves(Protocol):
    """The leaves that may be evicted at this moment, in no promised but reproducible order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Node]: ...
    def __getitem__(self, i: int) -> Node: ...


class Ctx(Protocol):
    """What the cache tells a policy about the moment it is asked in."""

    @property
    def now(self) -> float:
        """Logical time, seconds."""

    @property
    def seq(self) -> int:
        """Number of the cache event that is going on."""

    @property
    def rng(self) -> random.Random: ...
    @property
    def page_size(self) -> int: ...
    @property
    def capacity_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...

    def leaves(self) -> Leaves:
        """Evictable at this moment."""

    def cost(self, start: int, n: int) -> float:
        """Seconds to recompute `n` tokens after the first `start`."""

    @property
    def future(self) -> FutureIndex | None:
        """Oracle runs only."""


class FutureIndex(Protocol):
    """What an oracle policy may know of the future."""

    def next_use(self, page_key: int, seq: int) -> float:
        """Number of the next arrival that uses the page, `math.inf` when none does."""


class RequestView(Protocol):
    """What a policy sees of a request. Read only."""

    id: int
    namespace: str
    client: str
    conversation: str
    program: str
    agent: str
    parent: int | None
    """Id of the request that computes what it and its siblings begin with, where there is one."""
    siblings: int
    """Requests submitted together with it, itself included: samples of a prompt, branches of a fork, a batch."""
    priority: int
    """Larger goes first."""
    deadline: float | None
    predicted_output: int | None
    arrival: float
    """Seconds: when it was due."""

    @property
    def key(self) -> Any:
        """The prompt: a numpy array of int64 token ids."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""

    @property
    def max_tokens(self) -> int: ...


class Prefetch(NamedTuple):
    """The prefix will be used in about `steps` calls of its program."""

    prefix: Sequence[int]
    steps: int
    namespace: str = ""


class Pin(NamedTuple):
    """Please keep the prefix until the time given, seconds."""

    prefix: Sequence[int]
    until: float
    namespace: str = ""


class Unpin(NamedTuple):
    prefix: Sequence[int]
    namespace: str = ""


class ConversationEnd(NamedTuple):
    id: str


Hint = Prefetch | Pin | Unpin | ConversationEnd


class EvictionPolicy:
    """Which evictable leaf goes first.

    `order` says how the engine finds the smallest key:
      - "lazy": `key(node)` never decreases while the node lives; the engine keeps a heap and asks at its top only;
      - "rekey": `keys(nodes)` for all candidates at each choice (normalised scores);
      - "own": the policy keeps its own queue and yields from `victims`.
    The engine appends `(used_seq, -start, id)` to every key: no tie is left to chance.
    """

    order: Literal["lazy", "rekey", "own"] = "lazy"

    def on_miss(self, request: RequestView, page_keys: Sequence[int], ctx: Ctx) -> None:
        """Before any page is evicted for this request: the pages of its prompt that weren't found."""

    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None: ...

    def on_hit(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        """Root to leaf, once per request, at its first admission."""

    def on_split(self, upper: Node, lower: Node, ctx: Ctx) -> None:
        """Both halves already hold a copy of `slot`. `lower` is the node that was there, `upper` is new."""

    def on_evict(self, node: Node, page_keys: Sequence[int], ctx: Ctx) -> None:
        """The pages that went. `node.n_tokens` is already smaller; 0 means the node is gone."""

    def on_done(self, request: RequestView, path: Sequence[Node], ctx: Ctx) -> None: ...

    def on_hint(self, hint: Hint, ctx: Ctx) -> None: ...

    def key(self, node: Node, ctx: Ctx) -> tuple:
        """Smallest goes first. Has no side effects."""
        return ()

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[Any]:
        """ "rekey" only: a key for each of `nodes`, comparable with one another."""
        return [self.key(node, ctx) for node in nodes]

    def take(self, node: Node, need: int, ctx: Ctx) -> int:
        """At most this many tokens off the node's end, then it is keyed again. The engine rounds up to whole pages."""
        return node.n_tokens

    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        """ "own" only, a conversation: the engine evicts what is yielded before it asks for the next.

        It may stop at any yield. To end while `ctx.leaves()` has nodes left is an error.
        """
        raise NotImplementedError(f"{type(self).__name__} has order='own' and must define victims()")


class RetentionPolicy:
    """Cache admission: how many of a request's new tokens to keep."""

    def keep(self, request: RequestView, n_new: int, ctx: Ctx) -> int:
        return n_new


class ScheduleView(Protocol):
    """What a schedule policy may ask of the engine at a pass."""

    @property
    def now(self) -> float: ...
    @property
    def rng(self) -> random.Random: ...
    @property
    def page_size(self) -> int: ...
    @property
    def free(self) -> int:
        """Tokens that no request and no cached prefix holds."""

    @property
    def evictable(self) -> int:
        """Cached tokens that could be evicted now."""

    @property
    def running(self) -> Sequence[RequestView]: ...
    @property
    def clients(self) -> Sequence[str]:
        """Clients with a waiting or running request."""

    def match(self, request: RequestView) -> int:
        """Tokens of the request's prompt that are cached now. Touches nothing."""

    def path(self, request: RequestView) -> Sequence[Node]:
        """The cached nodes that `match` counts, root first, the last perhaps only in part. Touches nothing."""


class SchedulePolicy:
    """Who runs next, how much of a prompt at a time, who gives way."""

    def on_arrival(self, request: RequestView, view: ScheduleView) -> None: ...
    def on_hint(self, hint: Hint, view: ScheduleView) -> None: ...

    def on_scheduled(self, request: RequestView, n_prefill: int, n_cached: int, view: ScheduleView) -> None:
        """A yielded request was admitted. Runs before the next one is asked of `order`."""

    def on_tokens(self, request: RequestView, n: int, view: ScheduleView) -> None:
        """`n` more tokens were generated."""

    def on_done(self, request: RequestView, view: ScheduleView) -> None: ...

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        """The waiting requests, first to be admitted first. The first that doesn't fit ends the pass."""
        return iter(waiting)

    def chunk(self, request: RequestView, budget: int, view: ScheduleView) -> int:
        """At most this many of the request's prompt tokens in this step (1 <= result <= budget)."""
        return budget

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], need: int, view: ScheduleView
    ) -> Iterator[RequestView]:
        """Asked at every pass; `need` is the tokens missing, 0 when memory suffices.

        The engine stops asking when it has enough.
        """
        if need > 0:
            yield from reversed(running)


class Accept(NamedTuple):
    pass


class Reject(NamedTuple):
    reason: str


class RetryAt(NamedTuple):
    time: float
    """Seconds."""


class AdmissionPolicy:
    """Whether a request may join the queue."""

    def admit(self, request: RequestView, view: ScheduleView) -> Accept | Reject | RetryAt:
        return Accept()


class RoutingPolicy:
    """Which worker a request goes to."""

    def route(self, request: RequestView, workers: Sequence[Any], ctx: Ctx) -> int:
        """Index into `workers`."""
        raise NotImplementedError(f"{type(self).__name__} must define route()")

    def on_dispatch(self, request: RequestView, worker: int, ctx: Ctx) -> None: ...
    def on_first_token(self, request: RequestView, worker: int, ctx: Ctx) -> None: ...
    def on_done(self, request: RequestView, worker: int, ctx: Ctx) -> None: ...
    def on_kv(self, worker: int, stored: Sequence[int], removed: Sequence[int]) -> None: ...


KINDS: dict[str, type] = {
    "eviction": EvictionPolicy,
    "retention": RetentionPolicy,
    "scheduling": SchedulePolicy,
    "admission": AdmissionPolicy,
    "routing": RoutingPolicy,
}
CostModel = Callable[[int, int], float]
"""Seconds to compute n tokens after the first `start`."""
