"""Traces in the shape of the real ones, made by our own code. The same every time."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta

BLOCK = 512
SYSTEM_BLOCKS = 2


def _lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sample_mooncake(conversations: int = 30) -> bytes:
    """Conversations that grow turn by turn, on two system prompts; about 90 requests in a minute."""
    rng = random.Random("mooncake sample")
    made = 2 * SYSTEM_BLOCKS
    rows: list[dict[str, object]] = []
    for _ in range(conversations):
        system = rng.randrange(2) * SYSTEM_BLOCKS
        whole = list(range(system, system + SYSTEM_BLOCKS))
        time = rng.uniform(0, 40_000)
        for _ in range(1 + rng.randrange(5)):
            fresh, rest = 1 + rng.randrange(6), 1 + rng.randrange(BLOCK - 1)
            ids = [*whole, *range(made, made + fresh + 1)]
            made += fresh + 1
            row = {"timestamp": round(time), "input_length": (len(ids) - 1) * BLOCK + rest, "hash_ids": ids}
            rows.append({**row, "output_length": 1 + int(rng.lognormvariate(5, 1))})
            whole, time = ids[:-1], time + rng.uniform(3_000, 12_000)
    return _lines(sorted(rows, key=lambda row: (row["timestamp"], row["hash_ids"])))


FILES = ("parser", "cache", "router", "index", "codec", "queue")
SYMPTOMS = ("loses the last item", "counts one item twice", "ignores its limit", "fails on empty input")


def sample_agent(sessions: int = 6) -> bytes:
    """Agents that look at files and repair them: each call has all that was seen before it."""
    rng = random.Random("agent sample")
    rows: list[dict[str, object]] = []
    for session in range(sessions):
        file, symptom = rng.choice(FILES), rng.choice(SYMPTOMS)
        seen = (
            "You repair programs. Say what you think, then give one command; its output follows.\n\n"
            f"Report {session}: {file}.py {symptom}. Find out why, repair it and run the tests.\n"
        )
        time = rng.uniform(0, 30)
        for step in range(3 + rng.randrange(5)):
            command = rng.choice([f"cat {file}.py", f"grep -n def {file}.py", f"pytest tests/test_{file}.py"])
            tool = rng.random() < 0.2
            output = "" if tool else f"Step {step + 1} should show more of {file}.\nCommand: {command}"
            rows.append(
                {"timestamp": int(time * 1e6), "input": seen, "output": output, "session_id": f"sample-{session}"}
            )
            printed = "".join(
                f"{rng.randrange(400)}: value_{rng.randrange(90)} = {rng.randrange(9999)}\n" for _ in "123456"
            )
            seen += f"\nOutput of {command}:\n{printed}"
            time += rng.uniform(2, 6)
    return _lines(sorted(rows, key=lambda row: str(row["timestamp"]).zfill(12)))


def sample_azure(requests: int = 120) -> bytes:
    """Poisson arrivals, two a second; lengths of a log-normal law."""
    rng = random.Random("azure sample")
    time = datetime(2024, 1, 1, 12)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for _ in range(requests):
        time += timedelta(seconds=rng.expovariate(2))
        context, generated = 1 + int(rng.lognormvariate(6.5, 1)), 1 + int(rng.lognormvariate(4.5, 1))
        lines.append(f"{time.isoformat(sep=' ')},{context},{generated}")
    return ("\r\n".join(lines) + "\r\n").encode()
