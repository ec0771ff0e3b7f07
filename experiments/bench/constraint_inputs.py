"""What the benchmark of constrained decoding is run on: the jump-forward benchmark of the SGLang repository, and
vocabularies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from engine.tokenizer import HFTokenizer, load_tokenizer
from experiments.bench.radix_prompts import tinyllama_file
from workloads.json_decode.patterns import CHARACTER, CITY, MAX_TOKENS

__all__ = ["CHARACTER", "CITY", "MAX_TOKENS", "Task", "tasks", "vocabularies"]

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
"""How cl100k_base splits a text into pieces."""


class Task(NamedTuple):
    name: str
    pattern: str
    prompts: list[str]


def tasks(data: Path, page_characters: int) -> list[Task]:
    """The two tasks of the benchmark with its prompts. page_characters: of a city's page; the rest is cut."""
    names = (
        (data / "sglang_bench_misc" / "json_jump_forward_character_names.txt").read_text(encoding="utf-8").split("\n")
    )
    with gzip.open(data / "wikipedia_cities" / "cities.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line)["text"][:page_characters] for line in lines]
    characters = [
        f"{name} is a character in Harry Potter. Please fill in the following information about this character.\n"
        for name in names
        if name
    ]
    cities = [
        "Please extract the information of a city from the following wikipedia page.\n"
        f"Page begin.\n{page}Page end.\nHere is the name, country, and symbol of the city in JSON format.\n"
        for page in pages
    ]
    return [Task("character", CHARACTER, characters), Task("city", CITY, cities)]


def vocabularies(data: Path) -> dict[str, HFTokenizer]:
    """Real ones, by the number of their tokens: TinyLlama's 32,000 and the 100,256 of cl100k_base."""
    return {"32k": load_tokenizer(tinyllama_file(data)), "100k": _cl100k(data / "tokenizers" / "cl100k_base.tiktoken")}


def _cl100k(file: Path) -> HFTokenizer:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    fast = TikTokenConverter(vocab_file=str(file), pattern=_SPLIT, extra_special_tokens=["<|endoftext|>"]).converted()
    return HFTokenizer(fast, [fast.token_to_id("<|endoftext|>")], None, "cl100k_base")
