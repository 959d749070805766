"""The journal: TensorBoard always, JSON lines where nobody looks, a bar where somebody does."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from pipeline.learning.journal import Journal


def scalars_in(folder: Path) -> dict[tuple[str, int], float]:
    found = {}
    for file in folder.glob("events*"):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
            data = data[16 + length :]
    return found


def test_scalars_go_to_tensorboard_and_to_stderr_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path, 20) as journal:
        journal(10, {"epoch": 0, "loss": 0.123456789})
    assert scalars_in(tmp_path)["train/loss", 10] == pytest.approx(0.123456789)
    captured = capsys.readouterr()
    assert json.loads(captured.err) == {"step": 10, "of": 20, "epoch": 0, "loss": 0.12346}
    assert captured.out == ""  # stdout is for the result line


def test_a_bar_starts_where_the_run_does_and_takes_the_place_of_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    class Bar:
        def __init__(self, total: int, desc: str) -> None:
            calls.append(total)

        def update(self, steps: int) -> None:
            calls.append(steps)

        def set_description(self, text: str) -> None:
            calls.append(text)

        def close(self) -> None:
            calls.append("closed")

    with Journal(tmp_path, 20, start=5, bar=Bar) as journal:
        journal(10, {"epoch": 1, "loss": 2.0})
    assert calls == [20, 5, "epoch 1 loss 2.0000", 5, "closed"]
    assert capsys.readouterr().err == ""
