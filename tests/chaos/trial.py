"""One trial: a night is disturbed at a point and run again, while a reader looks on."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from tests.chaos.points import Point
from tests.chaos.world import SECONDS, Night, Reader, World, check_end
from tests.proxy import Fault, Plan, Request

WORDS = {"actor": ("EncodeRow",), "task": ("finish_unit", "ray::IDLE"), "raylet": ("raylet/raylet",)}
RERUNS = 30  # as long as another's lease is live, a second apart


@dataclass
class Outcome:
    """What a trial came to: nothing wrong, or what."""

    point: Point
    seconds: float = 0.0
    codes: list[int] = field(default_factory=list)  # of the disturbed night and of those after it
    looks: int = 0  # of the reader
    retries: int = 0  # storage_retries, as the nights counted them
    wrong: list[str] = field(default_factory=list)


def run_trial(world: World, point: Point, name: str) -> Outcome:
    """Disturb a night at a point, run it again, and compare the store with the undisturbed one."""
    outcome, started = Outcome(point), time.monotonic()
    world.copy_base(name)
    reader = Reader(world, name)
    blow = _Blow(point, lambda: Night(world, name).wait()[0])
    world.proxy.forget(blow.plan)
    environment = {"AWS_MAX_ATTEMPTS": "2"} if point.lasting else {}
    night = Night(world, name, *point.settings, ray=point.ray, **environment)
    blow.aim(night)
    if point.victim == "frozen":
        _overtake(world, point, blow, night, name, outcome)
    else:
        outcome.codes.append(_ended(night, outcome))
        # What is written under runs/ comes after the line with the counts.
        counted = point.fault in ("slow down", "error") and "/runs" not in point.path
        if point.victim == "nobody" and counted and not outcome.retries:
            outcome.wrong.append("the request that was made again is not counted")
        world.proxy.forget()
        _run_again(world, point, name, outcome)
    if point.victim == "rival":
        # While the lease is held it finds that out; otherwise it does the work, and nothing is left to do.
        met, wanted = (blow.rivals, outcome.codes[0]), ([4 if "codes" in point.path else 0], 0)
        if met != wanted:
            outcome.wrong.append(f"rival and night ended with codes {met}, expected {wanted}")
    if not blow.struck:
        outcome.wrong.append("the point was never reached")
    absorbed = point.victim == "nobody" and not point.lasting
    if absorbed and outcome.codes[0] != 0:
        outcome.wrong.append(f"a single fault ended the night with code {outcome.codes[0]}")
    if point.victim == "driver" and outcome.codes[0] != -signal.SIGKILL:
        outcome.wrong.append(f"the driver was not killed, it ended with code {outcome.codes[0]}")
    seen, faults, outcome.looks = reader.stop()
    outcome.wrong += faults[:3]
    if [release for release in seen if release not in world.releases] or seen != sorted(
        seen, key=world.releases.index
    ):
        outcome.wrong.append(f"the reader saw {seen}")
    outcome.wrong += check_end(world, name)
    outcome.seconds = time.monotonic() - started
    return outcome


def _run_again(world: World, point: Point, name: str, outcome: Outcome) -> None:
    """Run the night until it is done; one that finds a live lease waits for it."""
    for _ in range(RERUNS):
        night = Night(world, name, ray=point.ray)
        code = _ended(night, outcome)
        outcome.codes.append(code)
        if code != 4:
            break
        threading.Event().wait(1)
    if outcome.codes[-1] != 0:
        outcome.wrong.append(f"the rerun ended with code {outcome.codes[-1]}")


def _overtake(world: World, point: Point, blow: "_Blow", night: Night, name: str, outcome: Outcome) -> None:
    """Run another night while this one sleeps; wake it up when that is done: it must not publish."""
    if not blow.done.wait(SECONDS):
        outcome.wrong.append("the point was never reached")
    world.proxy.plan = None
    _run_again(world, point, name, outcome)
    os.kill(night.pid, signal.SIGCONT)
    blow.release.set()
    code = _ended(night, outcome)
    outcome.codes.append(code)
    # Asleep before it has read the log again, it may find that the other has left it nothing to do.
    expected = (0, 1) if point.name.endswith("its lease") else (1,)
    if code not in expected:
        outcome.wrong.append(f"the night that had slept ended with code {code}, expected {expected}")


def _ended(night: Night, outcome: Outcome) -> int:
    code, line = night.wait()
    outcome.retries += line.get("metrics", {}).get("storage_retries", 0)
    if code == -1:
        outcome.wrong.append(line["error"])
    return code


class _Blow:
    """What the proxy does at the point of a trial."""

    def __init__(self, point: Point, rival: Callable[[], int]) -> None:
        self.point = point
        self.rivals: list[int] = []  # exit codes of other nights
        self._rival = rival
        self.struck = False
        self.done, self.release = threading.Event(), threading.Event()
        self._aimed = threading.Event()
        self._night: Night | None = None
        self._lock = threading.Lock()
        self._counted = 0

    def aim(self, night: Night) -> None:
        """Say whom it is to meet."""
        self._night = night
        self._aimed.set()

    @property
    def plan(self) -> Plan:
        """What the proxy asks for each request."""
        pattern, hold = re.compile(self.point.path), self.point.hold and re.compile(self.point.hold)

        def plan(request: Request) -> Fault | None:
            path = f"{request.path}?{request.query}"
            if request.method == self.point.method and pattern.search(
                request.path if "list-type" not in self.point.path else path.replace("%2F", "/")
            ):
                return self._meet()
            if hold and request.method == "PUT" and hold.search(request.path):
                return Fault(before=lambda request: self._hold())
            return None

        return plan

    def _meet(self) -> Fault | None:
        with self._lock:
            self._counted += 1
            if not self.point.lasting and (self.struck or self._counted < self.point.times):
                return None
            self.struck = True
        if self.point.victim == "nobody":
            return Fault(self.point.fault)
        if self.point.victim == "rival":
            return Fault(before=lambda request: self.rivals.append(self._rival()))
        strike = self._freeze if self.point.victim == "frozen" else self._kill
        if self.point.victim in ("driver", "frozen"):
            # The victim hears nothing more: what it asked for is done or not, and it does not know.
            if self.point.after:
                return Fault("lose", after=lambda request: strike())
            return Fault("refuse", before=lambda request: strike())
        if self.point.after:
            return Fault(after=lambda request: strike())
        return Fault(before=lambda request: strike())

    def _hold(self) -> None:
        self.release.wait(20)

    def _kill(self) -> None:
        night = self._victim()
        if self.point.victim == "driver":
            night.kill()
        else:
            victims = night.children(*WORDS[self.point.victim])
            self.struck = bool(victims)
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
        self.release.set()
        self.done.set()

    def _freeze(self) -> None:
        os.kill(self._victim().pid, signal.SIGSTOP)
        self.done.set()

    def _victim(self) -> Night:
        self._aimed.wait()
        assert self._night is not None
        return self._night
