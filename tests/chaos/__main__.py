"""The whole of the trials: `python -m tests.chaos [--seed N] [--points N] [--only WORDS] [--no-ray]`.

Every write of a night is a point twice, every kind of request meets faults, and what a lease and a cluster go
through comes on top. Ends with a table and code 1 if anything was wrong.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.points import Point, cluster, faults, leases, steps
from tests.chaos.trial import Outcome, run_trial
from tests.chaos.world import World, made_world
from tests.proxy import running_proxy
from tests.s3 import BUCKET, chosen_server


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials in an order drawn by seed; return 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--points", type=int, help="at most so many, drawn by seed")
    parser.add_argument("--only", help="points whose name holds these words")
    parser.add_argument("--no-ray", action="store_true", help="without the points that need a cluster")
    parser.add_argument("--only-ray", action="store_true", help="those alone")
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", file=sys.stderr)
    with (
        chosen_server() as told,
        running_proxy(told["AWS_ENDPOINT_URL"]) as proxy,
        tempfile.TemporaryDirectory(prefix="hashfleet-chaos-") as folder,
    ):
        outcomes: list[Outcome] = []
        for large in (False, True):
            if (large and args.no_ray) or (not large and args.only_ray):
                continue
            name = "large" if large else "small"
            place = Path(folder) / name
            with made_world(place, proxy, bucket=f"s3://{BUCKET}", name=name, large=large) as world:
                points = enumerated(world, large=large)
                if args.only:
                    points = [point for point in points if args.only in point.name]
                random.Random(args.seed).shuffle(points)
                for number, point in enumerate(points[: args.points]):
                    outcomes.append(run_trial(world, point, f"{name}-{number}"))
                    _tell(outcomes[-1])
    return _summary(outcomes, args.seed)


def enumerated(world: World, *, large: bool = False) -> list[Point]:
    """Return every point of a world whose undisturbed night was the last that its proxy saw."""
    if large:
        return list(cluster())
    return [*steps(world.calm), *faults(world.calm), *leases()]


def _tell(outcome: Outcome) -> None:
    verdict = "; ".join(outcome.wrong) or "ok"
    codes = ",".join(map(str, outcome.codes))
    print(
        f"{outcome.seconds:6.1f} s  {codes:>8}  {outcome.point.name}: {verdict}", file=sys.stderr, flush=True
    )


def _summary(outcomes: Sequence[Outcome], seed: int) -> int:
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.point.victim, []).append(outcome)
    print(f"\n{'victim':<10} {'points':>6} {'wrong':>6} {'looks':>6} {'seconds':>8}", file=sys.stderr)
    for victim, group in sorted(rows.items()):
        bad, looks = sum(bool(one.wrong) for one in group), sum(one.looks for one in group)
        seconds = sum(one.seconds for one in group)
        print(f"{victim:<10} {len(group):>6} {bad:>6} {looks:>6} {seconds:>8.0f}", file=sys.stderr)
    print(f"seed {seed}: {len(outcomes)} points, {len(wrong)} went wrong", file=sys.stderr)
    for outcome in wrong:
        print(f"  {outcome.point.name}: {'; '.join(outcome.wrong)}", file=sys.stderr)
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
