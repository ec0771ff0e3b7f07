"""What the machine code of a compiled kernel says: registers, spills, which instructions it is made of.

Read with `cuobjdump` and `nvdisasm`, which Triton's package carries; neither needs a GPU.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton
from triton.runtime.cache import get_cache_manager

PROGRAMS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = ("HMMA", "IMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA", "DMMA", "QMMA", "OMMA")
"""HMMA and IMMA: up to sm_89 and small tiles after it; .GMMA: sm_90; UTC.MMA: sm_100."""
_THIS_FILE = Path(__file__).read_bytes()
"""Another version of it may count otherwise."""
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_WIDE = re.compile(r"\.128\b|\.ENL2\.256\b")


class Sass(NamedTuple):
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread: a local array or spilled registers."""
    static_shared: int
    """Bytes of a block."""
    spills: int
    """Loads and stores of local memory (LDL, STL)."""
    matrix: dict[str, int]
    """Matrix instructions by name, e.g. {"HMMA": 128}. All counts are of the code as it stands, loops once."""
    copies: dict[str, int]
    """Asynchronous copies from device to shared memory: LDGSTS, UTMALDG, UBLKCP."""
    wide: int
    """Loads from and stores to device memory, and asynchronous copies, of 16 bytes a thread or more."""
    narrow: int
    """Those of less."""


@functools.cache
def read(cubin: bytes) -> Sass:
    """Of a file with one kernel, as Triton makes them. Kept in Triton's cache on disk."""
    cache = get_cache_manager(hashlib.sha256(_THIS_FILE + cubin).hexdigest())
    if known := cache.get_file("sass.json"):
        return Sass(**json.loads(Path(known).read_text(encoding="utf-8")))
    code = _disassembled(cubin)
    cache.put(json.dumps(code._asdict()), "sass.json", binary=False)
    return code


def _disassembled(cubin: bytes) -> Sass:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return parse(_run("cuobjdump", "-res-usage", file.name), _run("nvdisasm", "-c", "-ndf", file.name))


def parse(usage: str, listing: str) -> Sass:
    """From what `cuobjdump -res-usage` and `nvdisasm -c` print of a file with one kernel."""
    found = _USAGE.findall(usage)
    names = Counter(_INSTRUCTION.findall(listing))
    if not found or not names:
        raise ValueError(f"no kernel in what cuobjdump and nvdisasm print: {usage[:200]!r} {listing[:200]!r}")
    registers, stack, shared, _ = (max(int(numbers[i]) for numbers in found) for i in range(4))
    kinds: Counter[str] = Counter()
    wide = narrow = 0
    for name, count in names.items():
        kind = name.split(".")[0]
        kinds[kind] += count
        if kind in ("LDG", "STG", "LDGSTS"):
            is_wide = _WIDE.search(name) is not None
            wide, narrow = wide + count * is_wide, narrow + count * (not is_wide)
    return Sass(
        registers,
        stack,
        shared,
        kinds["LDL"] + kinds["STL"],
        {kind: kinds[kind] for kind in MATRIX if kinds[kind]},
        {kind: kinds[kind] for kind in ("LDGSTS", "UTMALDG", "UBLKCP") if kinds[kind]},
        wide,
        narrow,
    )


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run([PROGRAMS / program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
