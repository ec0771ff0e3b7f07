"""Questions about a picture, as in the LLaVA bench: the picture is in the prompt once, its questions in branches.

Runs on the mock, since the engine's models take no images yet: it says so when asked. The mock sees a digest of the
picture where the model would see the picture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import lang
from examples.programs.example import Example

N_QUESTIONS = 3


@lang.function
def image_questions(s: lang.ProgramState, picture: bytes, questions: Sequence[str]) -> list[str]:
    s += lang.system("Answer questions about a picture.")
    s += lang.user_begin() + lang.image(picture)
    forks = s.fork(N_QUESTIONS)
    forks += [questions[i] + lang.user_end() for i in range(N_QUESTIONS)]
    forks += lang.assistant(lang.gen("answer", max_tokens=768))
    forks.join()
    s += "All of it: " + "; ".join(s["answer"]) + lang.user_end()
    s += lang.assistant(lang.gen("summary", max_tokens=64))
    return s["answer"]


def png(red: int, green: int, blue: int) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes([0, red, green, blue])))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def reply(prompt: str) -> str:
    """Something that depends on all of the prompt."""
    return f"I see {zlib.crc32(prompt.encode()) % 1000} of them"


QUESTIONS = [["What is it?", "Which colour?", "How large is it?"], ["Who made it?", "Is it old?", "What for?"]]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
EXAMPLE = Example(
    image_questions,
    items=[{"picture": png(*colour), "questions": asked} for colour in COLOURS for asked in QUESTIONS],
    reply=reply,
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
