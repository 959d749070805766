"""Figures of a run as Ray's metrics, which its dashboard, Prometheus and Grafana read."""

import re
from collections.abc import Callable, Mapping

from ray.util.metrics import Gauge


def run_gauges(
    run: str, *, prefix: str, describe: Callable[[str], str]
) -> Callable[[Mapping[str, float]], None]:
    """Return a function that shows figures as gauges `<prefix>_<name>`, tagged with the run's name.

    Args:
        describe: says what a figure is, by its name; asked once, when a figure is first shown.
    """
    gauges: dict[str, Gauge] = {}

    def show(figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if name not in gauges:
                metric = re.sub(r"[^a-zA-Z0-9_]", "_", f"{prefix}_{name}")
                gauges[name] = Gauge(metric, describe(name), ("run",))
            gauges[name].set(value, tags={"run": run})

    return show
