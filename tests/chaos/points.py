"""The points at which a night is disturbed: every write of an undisturbed one, and every kind of request.

A point is found by a request: method, path inside the store, repetition. `steps` reads the writes off an
undisturbed night, so a step that is added to the night is a point here without being named.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.proxy import KINDS, Kind

Victim = Literal["driver", "actor", "task", "raylet", "frozen", "rival", "nobody"]


@dataclass(frozen=True)
class Point:
    """One disturbance. `lasting`: the fault meets every such request, until the night gives up."""

    name: str
    method: str
    path: str  # pattern, searched for in the path of a request
    times: int = 1
    victim: Victim = "driver"
    after: bool = False  # once the server has done it, and before the answer; else before it hears of it
    fault: Kind = "pass"
    lasting: bool = False
    ray: bool = False
    settings: tuple[str, ...] = ()  # of the disturbed night only
    hold: str = ""  # pattern of a path whose PUT is held back until this point is reached


def steps(seen: Sequence[str]) -> Iterator[Point]:
    """Yield two points for each write of a night: the driver is killed before it is done, and after."""
    counted: dict[tuple[str, str], int] = {}
    for method, path in _inside(seen):
        if method not in ("PUT", "DELETE", "POST"):
            continue
        pattern = re.sub(r"probe-[0-9a-f]+", "probe-[0-9a-f]+", path.replace(".", r"\."))
        times = counted[method, path] = counted.get((method, path), 0) + 1
        for after in (False, True):
            when = "after" if after else "before"
            repeated = f" ({times})" if times > 1 else ""
            name = f"driver killed {when} {method} {_short(path)}{repeated}"
            yield Point(name, method, f"/{pattern}$", times=times, after=after)


def faults(seen: Sequence[str]) -> Iterator[Point]:
    """Yield the storage faults: each kind once for every kind of request, and one that lasts."""
    known: dict[tuple[str, str], str] = {}
    for method, path in _inside(seen):
        folder = path.split("/")[0] if "/" in path else path
        known.setdefault((method, folder), path)
    for number, (method, folder) in enumerate(sorted(known)):
        pattern, label = f"/{re.escape(folder)}(/|$)", f"{method} {folder}"
        if method == "LIST":
            method, pattern = "GET", f"list-type=2.*{re.escape(folder)}"
        for shift in range(2):  # every kind of fault meets some kinds of request; all of them in turn
            kind = KINDS[(2 * number + shift) % len(KINDS)]
            yield Point(f"{kind}: {label}", method, pattern, victim="nobody", fault=kind)
        yield Point(
            f"slow down, lasting: {label}",
            method,
            pattern,
            victim="nobody",
            fault="slow down",
            lasting=True,
        )


def leases() -> Iterator[Point]:
    """Yield what happens to a lease: renewed, given back, overslept, wanted by two."""
    soon = ("store.lease_seconds=3",)
    head = r"/heads/main/\d{12}\.json$"
    for after in (False, True):
        when = "after" if after else "before"
        yield Point(
            f"driver killed {when} the renewal of its lease",
            "PUT",
            r"/heads/main/000000000004\.json$",
            after=after,
            settings=soon,
            hold="/codes/",
        )
        yield Point(
            f"driver killed {when} it gives its lease back",
            "PUT",
            r"/heads/main/000000000004\.json$",
            after=after,
            settings=("encode.max_reject_fraction=0",),  # the night fails, and nothing is published
        )
    for path, what in ((head, "its lease"), ("/codes/", "a code file"), ("/releases/", "its manifest")):
        yield Point(
            f"driver asleep past its lease at {what}", "PUT", path, victim="frozen", settings=soon, after=True
        )
    yield Point("another night is started while one works", "PUT", "/codes/", victim="rival")
    yield Point("another night takes the lease just before", "PUT", head, victim="rival")
    publish = r"/heads/main/000000000004\.json$"
    yield Point("driver asleep past its lease at publishing", "PUT", publish, victim="frozen", settings=soon)


def cluster() -> Iterator[Point]:
    """Yield what dies on a cluster: actors, tasks, the raylet, the driver above them."""
    codes, parts, models = "/codes/", "/parts/", "/models/"
    yield Point("actor killed as it loads the model", "GET", models, victim="actor", ray=True)
    yield Point("actors killed before a code file", "PUT", codes, victim="actor", ray=True)
    yield Point(
        "actor killed as it finishes a unit of one chunk",
        "PUT",
        codes,
        victim="actor",
        ray=True,
        settings=(f"encode.chunk_bytes={64 << 20}",),
    )
    yield Point("task killed before it writes a code file", "PUT", codes, victim="task", ray=True)
    yield Point("task killed after a code file", "PUT", codes, victim="task", ray=True, after=True)
    yield Point("raylet killed before a code file", "PUT", codes, victim="raylet", ray=True)
    yield Point("raylet killed before a part", "PUT", parts, victim="raylet", ray=True)
    yield Point("driver killed before a code file, on Ray", "PUT", codes, ray=True)


def _inside(seen: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield method and path below the store of each request; those for the source begin with `source-`."""
    for request in seen:
        method, _, path = request.partition(" ")
        if "list-type=2" in path:
            prefix = re.search(r"prefix=([^&]*)", path)
            steps = prefix.group(1).split("%2F") if prefix else []
            yield "LIST", "/".join(steps[1:]).removeprefix("calm/")
            continue
        inside = path.split("?")[0].split("/", 3)[3]
        yield method, inside.removeprefix("calm/")


def _short(path: str) -> str:
    """Shorten digests, so that a table of points can be read."""
    return re.sub(r"([0-9a-f]{6})[0-9a-f]{26,}", r"\1..", re.sub(r"probe-[0-9a-f]+", "probe", path))
