"""Waiting prompts in the order of their tokens: those that begin alike are neighbours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from engine.policies.base import RequestView
from engine.policies.common_prefix import common_prefix

TOKEN_BYTES = 8


def _place(request: RequestView) -> tuple[bytes, int]:
    return request.key.tobytes(), request.id


class PromptOrder:
    """Requests sorted by prompt, a list a namespace. The bytes of prompts aren't kept, only asked for when needed."""

    def __init__(self) -> None:
        self._sorted: dict[str, list[RequestView]] = {}

    def __iter__(self) -> Iterator[RequestView]:
        for requests in self._sorted.values():
            yield from requests

    def add(self, request: RequestView) -> None:
        requests = self._sorted.setdefault(request.namespace, [])
        requests.insert(bisect_left(requests, _place(request), key=_place), request)

    def remove(self, request: RequestView) -> None:
        requests = self._sorted[request.namespace]
        del requests[bisect_left(requests, _place(request), key=_place)]
        if not requests:
            del self._sorted[request.namespace]

    def neighbours(self, request: RequestView, beyond: int) -> Iterator[tuple[RequestView, int]]:
        """Those that share more than the first `beyond` tokens with `request`, and how many tokens they share.

        Nearest first on each side. `request` itself isn't in the order any more.
        """
        requests = self._sorted.get(request.namespace, [])
        data, _ = place = _place(request)
        at = bisect_left(requests, place, key=_place)
        for side in (range(at, len(requests)), range(at - 1, -1, -1)):
            for i in side:
                other = requests[i]
                common = common_prefix(data, 0, other.key.tobytes(), len(data), TOKEN_BYTES) // TOKEN_BYTES
                if common <= beyond:
                    break
                yield other, common
