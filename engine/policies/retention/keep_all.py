"""Keep everything."""

from __future__ import annotations

from engine.policies.base import RetentionPolicy


class KeepAll(RetentionPolicy):
    """Every token that was computed goes to the cache."""
