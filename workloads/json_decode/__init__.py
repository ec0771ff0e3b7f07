"""JSON held to a regex, a schema or a tool's parameters."""

from workloads.json_decode.workload import JsonDecode

__all__ = ["JsonDecode"]
