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
