"""Depth first over the tree, heaviest branch first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView


class DFSWeight(SchedulePolicy):
    """Walks the cached tree depth first, into the branch with most waiting requests below it first.

    Branches of one weight go by their first arrival; requests whose match ends at a node come after those that go on
    below it. SGLang calls this order dfs-weight.
    """

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        weight: dict[int, int] = {}
        below: dict[int, dict[int, None]] = {}
        at: dict[int, list[RequestView]] = {}
        for request in sorted(waiting, key=lambda r: (r.arrival, r.id)):
            parent = 0
            for node in view.path(request):
                weight[node.id] = weight.get(node.id, 0) + 1
                below.setdefault(parent, {})[node.id] = None
                parent = node.id
            at.setdefault(parent, []).append(request)
        stack: list[tuple[int, bool]] = [(0, False)]
        while stack:
            here, visited = stack.pop()
            if visited:
                yield from at.get(here, ())
                continue
            stack.append((here, True))
            heaviest_first = sorted(below.get(here, ()), key=lambda child: -weight[child])
            stack.extend((child, False) for child in reversed(heaviest_first))
