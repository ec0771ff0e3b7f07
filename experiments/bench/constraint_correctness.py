"""Whether a grammar library keeps to JSON schemas: every case of MaskBench, judged.

    python -m experiments.bench.constraint_correctness [--data DIR] [--backend llguidance] [--tokenizer FILE]

Exits 1 when an invalid instance was accepted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engine.constraints.backends import BACKENDS, make_backend
from engine.tokenizer import builtin_tokenizer, load_tokenizer
from experiments.bench.maskbench import FILE, Verdict, judge, load
from experiments.bench.radix import write_json


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Counts of schemas and instances, and the time of masks (microseconds) and compiling (milliseconds)."""
    masks = np.concatenate([np.empty(0), *(verdict.mask_s for verdict in verdicts)])
    compiles = [verdict.compile_s for verdict in verdicts if verdict.error is None]
    followed = [verdict for verdict in verdicts if verdict.error is None]
    return {
        "schemas": len(verdicts),
        "served": sum(verdict.served for verdict in verdicts),
        "refused": len(verdicts) - len(followed),
        "invalid_instances": sum(verdict.n_invalid for verdict in followed),
        "invalid_accepted": sum(verdict.invalid_accepted for verdict in followed),
        "valid_instances": sum(verdict.n_valid for verdict in followed),
        "valid_refused": sum(verdict.valid_refused for verdict in followed),
        "forced_share": sum(v.forced_tokens for v in followed) / max(1, sum(v.tokens for v in followed)),
        "mask_us_p50": float(np.percentile(masks, 50)) * 1e6 if len(masks) else 0.0,
        "mask_us_p99": float(np.percentile(masks, 99)) * 1e6 if len(masks) else 0.0,
        "compile_ms_p50": float(np.percentile(compiles, 50)) * 1e3 if compiles else 0.0,
        "compile_ms_p99": float(np.percentile(compiles, 99)) * 1e3 if compiles else 0.0,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RADIXLAB_DATA"), help="default: $RADIXLAB_DATA")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="llguidance")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: the built-in one)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/constraint_correctness.json"))
    options = parser.parse_args(arguments)
    console = Console()
    if options.data is None or not (options.data / FILE).is_file():
        console.print(f"no {FILE}: give --data FOLDER, or set RADIXLAB_DATA")
        return 2
    tokenizer = builtin_tokenizer() if options.tokenizer is None else load_tokenizer(options.tokenizer)
    backend = make_backend(options.backend, tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids)
    cases = list(load(options.data / FILE))
    verdicts = [judge(backend, tokenizer, case) for case in track(cases, "schemas", console=console)]
    found = summary(verdicts)
    table = Table(title=f"MaskBench, {options.backend}, {tokenizer.vocab_size:,} tokens")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
    reasons = Counter(str(verdict.error)[:60] for verdict in verdicts if verdict.error is not None)
    content = {"backend": options.backend, "vocabulary": tokenizer.vocab_size, **found, "refusals": dict(reasons)}
    write_json(options.out, content)
    console.print(f"written to {options.out}")
    return 1 if found["invalid_accepted"] else 0


if __name__ == "__main__":
    sys.exit(main())
