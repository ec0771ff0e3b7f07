"""API keys: who may ask, and under which name."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.config import ConfigError

log = logging.getLogger("radixlab.server")

ENVIRONMENT = "RADIXLAB_API_KEYS"
_NAME = re.compile(r"[\w.@-]+")


class ApiKeys:
    """Digests of the keys; the keys themselves are not kept. No keys: everybody may ask."""

    def __init__(self, lines: Iterable[str]) -> None:
        """lines: `key` or `name:key`. A key without a name is called by the start of its digest.

        Raises ConfigError for a line that is neither, and for a name or a key that comes twice.
        """
        self._names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            name, colon, key = line.strip().rpartition(":")
            if not key or any(c.isspace() for c in key) or (colon and not _NAME.fullmatch(name.strip())):
                raise ConfigError(
                    f"API key number {number} is not `key` or `name:key`, without spaces in the key and with a name of "
                    "letters, digits, '.', '_', '-' and '@'"
                )
            digest = _digest(key)
            name = name.strip() or f"key-{digest.hex()[:8]}"
            if digest in self._names or name in self._names.values():
                raise ConfigError(f"API key number {number} ({name}) is there twice: give each key once, by one name")
            self._names[digest] = name

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str]) -> ApiKeys:
        """The keys of the file, one a line with `#` comments, and of RADIXLAB_API_KEYS. Raises ConfigError."""
        lines: list[str] = []
        if file is not None:
            try:
                text = file.read_text(encoding="utf-8")
                readable = stat.S_IMODE(file.stat().st_mode) & 0o077
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"api_keys_file={str(file)!r} can't be read: {error}") from None
            if readable:
                log.warning("%s can be read by other users of this machine: chmod 600 it", file)
            lines += [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            if not lines:
                raise ConfigError(f"api_keys_file={str(file)!r} holds no key: write one a line, or leave the file out")
        lines += [part for part in environment.get(ENVIRONMENT, "").split(",") if part.strip()]
        return cls(lines)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, given: str) -> str | None:
        """The name of the key, None for one that isn't known. Takes as long whichever it is."""
        digest, found = _digest(given), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def given_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of `Authorization: Bearer KEY` or `x-api-key: KEY`."""
    found = {name: value.decode("latin-1").strip() for name, value in headers}
    scheme, _, key = found.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return found.get(b"x-api-key") or None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
