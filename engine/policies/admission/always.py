"""Everybody may come in."""

from __future__ import annotations

from engine.policies.base import AdmissionPolicy


class Always(AdmissionPolicy):
    """Every request joins the queue at once."""
