"""Connecting to Ray: what is refused before anything is started."""

import sys

import pytest

from cluster import runtime


def test_an_interpreter_that_ray_cannot_start_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sys, "executable", "/home/a b/.venv/bin/python")
    with pytest.raises(RuntimeError, match="its path has a space; move the environment"):
        runtime.connect()


def test_only_a_ray_that_was_connected_to_here_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: "init" in calls)
    monkeypatch.setattr(runtime.ray, "init", lambda **_: calls.append("init"))
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: calls.append("shutdown"))
    runtime.disconnect()
    assert not calls
    runtime.connect()
    runtime.connect()
    runtime.disconnect()
    runtime.disconnect()
    assert calls == ["init", "shutdown"]
