"""python -m engine.server model=tiny policy=lru port=8000 engine.pool_tokens=100000

conf/server.yaml names every setting. After SIGTERM or SIGINT no more requests are taken and what is under way has
`grace_s` seconds to finish; a second one ends the process at once.

Exit code: 0; 1 when the engine died; 2 for settings that can't be served; 128 + the number of a second signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import uvloop

from engine.chat_template import TemplateError
from engine.config import ConfigError
from engine.engine import Engine
from engine.make import make_engine
from engine.models.config import ModelError
from engine.policies.base import PolicyError
from engine.request import RequestError
from engine.server.app import make_app
from engine.server.auth import ENVIRONMENT, ApiKeys
from engine.server.config import ServerConfig
from engine.server.front import Front, listen, url
from engine.server.gate import LOOPBACK_NAMES
from engine.server.launch import Settings, make_state
from engine.tokenizer import TokenizerError

log = logging.getLogger("radixlab.server")

TOLD = (ConfigError, ModelError, PolicyError, TokenizerError, TemplateError, RequestError)
"""What is wrong with the settings: the message suffices."""


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings(arguments)
        keys = ApiKeys.load(settings.server.api_keys_file, os.environ)
        _check_exposure(settings.server, keys)
        listener = listen(settings.server)
        engine = _made(settings)
        state = make_state(engine, settings.server)
        log.info("%s", state.chat.describe())
    except TOLD as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    hosts = LOOPBACK_NAMES if settings.server.loopback and not len(keys) else None

    async def serve() -> int:
        front = Front(state, make_app(state, keys=keys, hosts=hosts), listener)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, number, front)

        def ready() -> None:
            told = f"policy {settings.policy}, pool {engine.capacity_tokens} tokens"
            print(f"radixlab serves {state.model_name} at {url(listener)} ({told})", flush=True)

        return await front.run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(serve())
    if settings.record is not None:
        engine.log.write(settings.record)
    return code


def _made(settings: Settings) -> Engine:
    """The engine, made on a thread that ends.

    PyTorch's OpenMP keeps a team of threads for each thread that has computed. Where these are more than the cores, a
    team sleeps between two operations instead of spinning: beside the team that loaded the weights, the steps of the
    engine's thread took half as long again on two cores.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make_engine, settings.engine, keep_history=settings.record is not None).result()


def _check_exposure(config: ServerConfig, keys: ApiKeys) -> None:
    """Raises ConfigError when others than this machine could ask without a key."""
    if config.loopback or len(keys):
        return
    what = f"host={config.host} can be reached from other machines and there are no API keys"
    if not config.allow_unauthenticated:
        raise ConfigError(
            f"{what}: give api_keys_file=FILE or {ENVIRONMENT}, or say allow_unauthenticated=true, or host=127.0.0.1"
        )
    log.warning("%s: whoever can reach it may use it", what)


def _on_signal(number: int, front: Front) -> None:
    if front.closing:
        print("stopped at once", file=sys.stderr, flush=True)
        os._exit(128 + number)
    front.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
