from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine import replay as replay_command
from engine.clock import VirtualClock, WallClock
from engine.engine import Engine
from engine.executor.replay import ReplayDivergence
from engine.log import Event, Log, LogError
from engine.policies.base import ConversationEnd, Pin, Prefetch
from engine.replay import first_difference, replay
from engine.request import RequestError, SamplingParams


def busy(hash_engine: Callable[..., Engine]) -> Engine:
    """An engine that has seen every kind of input."""
    engine = hash_engine(pool_tokens=40)
    engine.hint(Prefetch([1, 2], steps=3))
    engine.hint(Pin([1], until=2.0))
    engine.hint(ConversationEnd("c"))
    with pytest.raises(RequestError):
        engine.add([], SamplingParams())
    for i in range(6):
        engine.add([1, 2, 3, i], SamplingParams(max_tokens=5, n=2), due=0.5 * i, client=str(i), priority=i)
    (doomed,) = engine.add([4], SamplingParams(max_tokens=5))
    engine.step()
    engine.abort(doomed)
    engine.executor.fail_at.add(3)  # type: ignore[attr-defined]
    engine.reset_metrics()
    engine.run()
    engine.flush_cache()
    return engine


def test_a_log_survives_the_disk_and_replays(hash_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = busy(hash_engine)
    engine.log.write(tmp_path / "events.parquet")
    log = Log.read(tmp_path / "events.parquet")
    assert log.config == engine.log.config
    assert [event._replace(tokens=list(event.tokens)) for event in engine.log.events] == log.events
    kinds = {event.kind for event in log.inputs()}
    assert kinds == {"hint", "reject", "arrive", "abort", "begin", "result", "failure", "measure", "flush"}
    assert first_difference(log, replay(log)) is None


def test_a_missing_input_is_noticed(hash_engine: Callable[..., Engine]) -> None:
    log = busy(hash_engine).log
    log.events.remove(next(event for event in log.events if event.kind == "arrive"))
    with pytest.raises(ReplayDivergence, match="the recording has rows"):
        replay(log)


def test_another_decision_is_noticed(hash_engine: Callable[..., Engine]) -> None:
    log = busy(hash_engine).log
    again = replay(log)
    at = next(i for i, event in enumerate(log.events) if event.kind == "insert")
    log.events[at] = log.events[at]._replace(a=99)
    assert "recorded" in str(first_difference(log, again))


def test_the_command_says_whether_all_decisions_were_found(
    hash_engine: Callable[..., Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.parquet"
    busy(hash_engine).log.write(path)
    assert replay_command.main([str(path)]) == 0
    assert "all found again" in capsys.readouterr().out
    assert replay_command.main([str(tmp_path / "missing.parquet")]) == 2
    assert "not a readable decision log" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LogError, match="not a readable decision log"):
        Log.read(path)


def test_a_log_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log({}, [Event(0, 0.0, "input", "begin")])
    log.write(tmp_path / "events.parquet")
    before = (tmp_path / "events.parquet").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        log.write(tmp_path / "events.parquet")
    assert (tmp_path / "events.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_hints_are_an_ablation_switch(hash_engine: Callable[..., Engine]) -> None:
    engine = hash_engine(hints=False)
    engine.hint(Pin([1], until=2.0))
    assert not engine.log.events


def test_virtual_time_moves_only_when_told() -> None:
    clock = VirtualClock()
    clock.sleep_until(2.0)
    clock.sleep_until(1.0)
    clock.advance(0.5)
    assert clock.now() == 2.5
    with pytest.raises(ValueError, match="can't go back"):
        clock.advance(-1)


def test_real_time_passes() -> None:
    clock = WallClock()
    clock.sleep_until(0.01)
    assert clock.now() >= 0.01


def test_importing_the_engine_does_not_import_torch() -> None:
    import subprocess

    code = "import sys, engine, engine.replay, engine.cache, engine.policies.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
