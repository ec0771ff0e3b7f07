"""Tiles measured on this GPU and stored in the tree (`--tune`)."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.bench.gpu.case import Case, Setup


def cases(setup: Setup) -> Iterator[Case]:
    raise NotImplementedError
    yield
