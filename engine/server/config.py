"""What may be set of the server."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields
from pathlib import Path

from engine.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything about the server that isn't the engine's. Raises ConfigError for values that make no sense."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    model_name: str | None = None
    """What clients call the model; None: the name it was loaded by."""

    # who may ask
    api_keys_file: Path | None = None
    """One key a line, `key` or `name:key`. The environment's RADIXLAB_API_KEYS, with commas, adds to it."""
    allow_unauthenticated: bool = False
    """Listen beyond this machine although there are no keys."""

    isolate_clients: bool = False
    """Cached prefixes are never shared between API keys: nobody can tell from a quick answer what another has asked."""

    # what a request may take
    max_body_bytes: int = 32 * 2**20
    max_header_bytes: int = 32 * 2**10
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    """For a connection to bring a request's headers."""
    body_timeout_s: float = 30.0
    """For a request to bring its body."""
    keep_alive_s: float = 5.0
    """How long a connection may rest between two requests."""
    max_prompts: int = 256
    """Prompts in one request."""
    max_n: int = 128
    """Samples of one prompt."""

    # overload
    max_waiting: int = 1024
    """Samples that may wait for their first step; one more is told to come back later (429)."""
    timeout_s: float = 600.0
    """After this a request is dropped or ended (504), unless it names less itself."""
    stream_buffer: int = 1024
    """Output tokens of a generation that its reader may be behind; then the client is cut off."""
    send_buffer_bytes: int = 256 * 2**10
    """Of the operating system, a connection."""
    grace_s: float = 30.0
    """After SIGTERM, for what is under way to finish."""

    # text and images
    tokenizer_threads: int = 2
    """For long texts and grammars."""
    chat_template: Path | None = None
    """A Jinja file instead of the tokenizer's own template."""
    tool_format: str | None = None
    """How the model writes calls of tools: hermes, llama3_json or mistral; None: as its template shows."""
    images_dir: Path | None = None
    """Images may be named as files below this folder; None: data URLs only."""
    max_image_bytes: int = 16 * 2**20
    """Of one image's file."""
    max_image_pixels: int = 32 * 2**20
    max_images: int = 16
    """In one request."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = str(field.type)
            if kind == "int" and not (isinstance(value, int) and not isinstance(value, bool)):
                raise _refused(field.name, value, "a whole number")
            if kind == "float" and not _finite(value):
                raise _refused(field.name, value, "a number of seconds")
            if kind == "bool" and not isinstance(value, bool):
                raise _refused(field.name, value, "true or false")
            if kind == "str" and not (isinstance(value, str) and value):
                raise _refused(field.name, value, "a name")
            least = 0 if field.name in ("port", "grace_s") else 1 if kind == "int" else 0.001
            if kind in ("int", "float") and value < least:
                raise _refused(field.name, value, f"{least} or more")
        if self.port > 65535:
            raise _refused("port", self.port, "from 0 (any that is free) to 65535")

    @property
    def loopback(self) -> bool:
        """Only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refused(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name}={value!r} is not allowed: it must be {allowed}")
