"""Conversations of several turns: the paper's synthetic ones, and real ones."""

from workloads.chat.workload import Chat

__all__ = ["Chat"]
