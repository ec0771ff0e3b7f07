"""Files of a model on the Hugging Face hub, or of its local copy when the hub is out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 5
"""How long the hub may take to say that it is there, and what it has."""


class HubError(ValueError):
    """The hub has no such model or is out of reach, and there is no local copy."""


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """A folder with the files of the model `name` that match one of `patterns`; downloaded if they aren't here yet.

    Without the hub it is the local copy as it is, perhaps without some of the files. Raises HubError.
    """
    from huggingface_hub import HfApi, snapshot_download

    unreachable: Exception | None = None
    try:
        HfApi().model_info(name, timeout=TIMEOUT_S)
    except Exception as error:
        unreachable = error
    try:
        folder = snapshot_download(
            name,
            allow_patterns=list(patterns),
            etag_timeout=TIMEOUT_S,
            local_files_only=unreachable is not None,
        )
    except Exception as error:
        cause = unreachable or error
        reason = (str(cause).splitlines() or ["no details"])[0]
        raise HubError(
            f"{name!r} isn't a folder here, nor in the local cache, and the Hugging Face hub gave "
            f"{type(cause).__name__}: {reason}; check the name, or give the path of a folder"
        ) from cause
    return Path(folder)
