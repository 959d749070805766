"""What loss and gradient of one rank cost, beside the published forms over all pairs of the global batch.

    OMP_NUM_THREADS=1 python benchmarks/loss.py [--quick]

Features are 512 + 512 wide, codes 64 bits, 256 local rows, single precision, one thread. The published forms
(published_losses.py) are as their authors' code has them, with autograd, and run over the whole batch, as
every rank of a plain data-parallel run would. Ours are the methods themselves, given what the other ranks
send: moments (DJSRH) or features, norms and codes (JDSH, whose population is this batch).
Both sides of a ratio run in turn; figures are medians. Prints a table to stderr and one JSON line.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmh_models import build_method
from cmh_models.cosines import unit_codes
from cmh_models.djsrh import DJSRH
from cmh_models.jdsh import FACTORS, JDSH
from cmh_models.method import Everyone, HashMethod, HashOutput, Progress, Term

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.published_losses import (
    BITS,
    DSDW,
    GAINS,
    DcmhStep,
    Rows,
    draw,
    published_djsrh,
    published_jdsh,
)

LOCAL, WIDTHS, WIDE = 256, (512, 512), (4096, 1386)
CHUNK = 2048  # columns of a JDSH step: the method's default
SIDES = ("image", "text")
START = Progress(0, 0, 1)


class Rank:
    """The first rank of a global batch, with all that the others send it made beforehand."""

    def __init__(self, rows: Rows, local: int) -> None:
        self.rows, self.local = rows, local
        self.total = len(rows.codes[0])
        self.features = tuple(each[:local] for each in rows.features)
        with torch.no_grad():
            targets = zip(SIDES, (functional.normalize(each) for each in rows.features), strict=True)
            self.gathered = {f"{side}_target": value for side, value in targets}
            self.gathered["units"] = unit_codes(*rows.codes)

    def output(self, leaves: tuple[Tensor, Tensor]) -> HashOutput:
        """Return what forward gives, from codes and raw features on."""
        output: HashOutput = {}
        for side, code, features in zip(SIDES, leaves, self.features, strict=True):
            output[side] = code
            output[f"{side}_target"] = functional.normalize(features)
        output["units"] = unit_codes(*leaves)
        return output

    def everyone(self, output: HashOutput) -> Everyone:
        """Return what is gathered; a rank that is alone gathers its own."""
        alone = {name: output[name].detach() for name in self.gathered}
        return Everyone(alone if self.local == self.total else self.gathered, start=0)

    def back(self, terms: dict[str, Term], leaves: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Divide by the counts of all ranks, add up and go back."""
        ranks = self.total / self.local
        numerators = torch.stack([term.numerator for term in terms.values()])
        counts = torch.stack([term.denominator for term in terms.values()])
        (numerators / (counts * ranks)).sum().backward()
        return leaves[0].grad, leaves[1].grad  # type: ignore[return-value]


class DjsrhRank(Rank):
    """One rank of DJSRH."""

    def __init__(self, rows: Rows, local: int) -> None:
        super().__init__(rows, local)
        settings = {"name": "djsrh", "code_length": BITS, "image_weight": 0.3}
        self.method = method_of(settings, rows, DJSRH)
        self.method.global_rows = self.total
        self.method.rounds.fill_(self.method.statistics_rounds)
        self.sent = self.method.sums({**self.gathered, "image": rows.codes[0][:local]})

    def through_moments(self) -> None:
        """Go through moments, whatever takes fewer operations."""
        self.method.global_rows = None
        self.sent = self.method.sums({**self.gathered, "image": self.rows.codes[0][: self.local]})

    def step(self) -> tuple[Tensor, Tensor]:
        """Run loss and gradient of the local rows."""
        leaves = self.rows.leaves(self.local)
        output = self.output(leaves)
        sums = self.method.sums(output)
        # The sum over ranks: what the others sent stands ready, the local part was made above.
        sums = sums if self.local == self.total else self.sent
        return self.back(self.method.loss(output, self.everyone(output), sums, START), leaves)


class JdshRank(Rank):
    """One rank of JDSH; its population is the batch, or its moments are those of the batch."""

    def __init__(self, rows: Rows, local: int, *, chunk: int = CHUNK) -> None:
        super().__init__(rows, local)
        alone, total = local == self.total, self.total
        settings = {
            "name": "jdsh",
            "code_length": BITS,
            "chunk": chunk,
            # The published means are over all B^2 pairs, a pair's own among them.
            "intra_weight": 0.1 * (total - 1) / total,
            "cross_weight": 2 * (total - 1) / total,
            "paired_weight": 2 / total,
            "coherence_weight": 1.0,
            "similarity": {
                "form": "released",
                "moments": "batch" if alone else "population",
                "image_weight": 0.5,
                "text_weight": 0.1,
                "cross_weight": 0.4,
                "scale": 1.4,
                "left_gain": GAINS[0],
                "right_gain": GAINS[1],
            },
        }
        self.method = method_of(settings, rows, JDSH)
        self.method.global_rows = total
        self.method.rounds.fill_(self.method.statistics_rounds)
        similarity = self.method.similarity
        similarity.thresholds.copy_(torch.tensor(DSDW))
        if not alone:
            targets = self.gathered["image_target"], self.gathered["text_target"]
            similarity.add_moments(similarity.moment_sums(*targets), restart=True)
            self.gathered |= self._factors(*targets)

    def _factors(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        similarity = self.method.similarity
        rows = similarity.rows(image, text, similarity.population())
        names = ("image", "text", "image_norm", "text_norm", "from_image", "from_text")
        return {name: getattr(rows, field) for name, field in zip(FACTORS, names, strict=True)}

    def everyone(self, output: HashOutput) -> Everyone:
        if self.local == self.total:
            return super().everyone(output)
        return Everyone({name: self.gathered[name] for name in self.method.gathers}, start=0)

    def step(self) -> tuple[Tensor, Tensor]:
        """Run loss and gradient of the local rows."""
        leaves = self.rows.leaves(self.local)
        output = self.output(leaves)
        if self.local < self.total:
            output |= self._factors(output["image_target"], output["text_target"])
        sums = self.method.sums(output)
        return self.back(self.method.loss(output, self.everyone(output), sums, START), leaves)


def method_of(settings: dict[str, Any], rows: Rows, kind: type[HashMethod]) -> Any:
    """Build a method for features of these widths."""
    widths = zip(SIDES, rows.features, strict=True)
    towers = {side: {"name": "features", "width": each.shape[1], "hidden": 1} for side, each in widths}
    method = build_method(settings, towers)
    assert isinstance(method, kind)
    return method


class PeakMemory(TorchDispatchMode):
    """Follows the bytes of tensors that were made inside and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        for address, tensor in _storages(made).items():
            # A view of an input was made elsewhere.
            if address not in given:
                self.living[address] = (_reference(tensor), tensor.untyped_storage().nbytes())
        self.living = {key: entry for key, entry in self.living.items() if not entry[0]()}
        self.peak = max(self.peak, sum(size for _, size in self.living.values()))
        return made


def _storages(values: Any) -> dict[int, Tensor]:
    """Return the tensors among some values by the addresses of their storages."""
    tensors = (each for each in tree_leaves(values) if isinstance(each, Tensor))
    return {each.untyped_storage().data_ptr(): each for each in tensors}


def _reference(tensor: Tensor) -> Callable[[], bool]:
    """Return a function that tells whether a tensor's storage is gone."""
    weak = tensor.untyped_storage()._weak_ref()
    return lambda: bool(torch.UntypedStorage._expired(weak))


def seconds(step: Callable[[], Any]) -> float:
    """Time one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def in_turn(repeats: int, **steps: Callable[[], Any]) -> dict[str, float]:
    """Return the median seconds of each step, run in turn after one call to warm up."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    return {name: statistics.median(values) for name, values in taken.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gemm_limit(total: int, *, chunk: int = 512) -> Callable[[], None]:
    """Return the products alone of a JDSH step: b x B over both features twice and both codes once.

    In chunks of the size at which they are fastest, not that of the step.
    """
    inner = 2 * sum(WIDTHS) + 2 * BITS
    rows, columns = torch.randn(LOCAL, inner), torch.randn(total, inner)
    made = torch.empty(LOCAL, chunk)

    def run() -> None:
        for first in range(0, total, chunk):
            torch.mm(rows, columns[first : first + chunk].T, out=made[:, : total - first])

    return run


def relative_error(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest difference, relative to the length of the expected gradient."""
    pairs = zip(ours, expected, strict=True)
    return max(float((a - b[: len(a)]).norm() / b[: len(a)].norm()) for a, b in pairs)


def against_all_pairs(total: int, repeats: int) -> dict[str, Any]:
    """Measure both methods at one global batch against the published forms."""
    rows = draw(total, WIDTHS)
    djsrh, jdsh = DjsrhRank(rows, LOCAL), JdshRank(rows, LOCAL)
    ours = in_turn(4 * repeats + 3, djsrh=djsrh.step, jdsh=jdsh.step, gemm=gemm_limit(total))
    errors = {
        "djsrh": relative_error(djsrh.step(), published_djsrh(rows)),
        "jdsh": relative_error(jdsh.step(), published_jdsh(rows)),
    }
    published = {
        "djsrh": statistics.median(seconds(lambda: published_djsrh(rows)) for _ in range(repeats)),
        "jdsh": statistics.median(seconds(lambda: published_jdsh(rows)) for _ in range(repeats)),
    }
    return {"total": total, "ours": ours, "published": published, "errors": errors}


def at_published_batches(repeats: int) -> dict[str, float]:
    """Return ours / published at batches of 32 and 128, narrow and wide features, one rank."""
    ratios = {}
    for batch in (32, 128):
        for widths in (WIDTHS, WIDE):
            rows = draw(batch, widths)
            djsrh, jdsh = DjsrhRank(rows, batch), JdshRank(rows, batch)
            taken = in_turn(
                repeats,
                djsrh=djsrh.step,
                published_djsrh=partial(published_djsrh, rows),
                jdsh=jdsh.step,
                published_jdsh=partial(published_jdsh, rows),
            )
            for name in ("djsrh", "jdsh"):
                ratios[f"{name}_{batch}_d{sum(widths)}"] = taken[name] / taken[f"published_{name}"]
    return ratios


def peak_arrays(total: int, chunk: int) -> float:
    """Return the peak memory of a JDSH step above its inputs, in arrays of local rows x chunk."""
    rank = JdshRank(draw(total, WIDTHS), LOCAL, chunk=chunk)
    rank.step()
    with PeakMemory() as memory:
        rank.step()
    return memory.peak / (4 * LOCAL * chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the global batch of 8,192 pairs out")
    asked = parser.parse_args()
    with one_thread():
        report(measure(quick=asked.quick))


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything."""
    # First of all: later this process keeps freed memory, and the recipe's large arrays cost no page faults.
    dcmh = DcmhStep()
    first = in_turn(15, ours=dcmh.ours, recipe=dcmh.recipe)
    runs = [against_all_pairs(16 * LOCAL, 3)]
    if not quick:
        runs.append(against_all_pairs(32 * LOCAL, 1))
    small, large, moments = (DjsrhRank(draw(ranks * LOCAL, WIDTHS), LOCAL) for ranks in (2, 32, 2))
    moments.through_moments()
    return {
        "runs": runs,
        "djsrh": in_turn(15, small=small.step, large=large.step, moments=moments.step),
        "dcmh": first,
        "dcmh_again": in_turn(15, ours=dcmh.ours, recipe=dcmh.recipe),
        "dcmh_error": relative_error((dcmh.ours(),), (dcmh.recipe(),)),
        "published": at_published_batches(101),
        "arrays": peak_arrays(16 * LOCAL, CHUNK),
    }


def report(found: dict[str, Any]) -> None:
    """Print the table and the JSON line."""
    ratios: dict[str, float] = {}
    errors = [found["dcmh_error"]]
    for run in found["runs"]:
        ranks = run["total"] // LOCAL
        for name in ("djsrh", "jdsh"):
            ours, theirs = run["ours"][name], run["published"][name]
            ratios[f"{name}_{ranks}x{LOCAL}_vs_all_pairs"] = theirs / ours
            errors.append(run["errors"][name])
            told = f"all pairs {theirs * 1e3:>8.1f} ms, ours {ours * 1e3:>6.1f} ms"
            print(f"{name:<6} {ranks:>2} x {LOCAL}: {told}, {theirs / ours:>7.1f} x", file=sys.stderr)
    first = found["runs"][0]["ours"]
    ratios["jdsh_vs_gemm_limit"] = first["gemm"] / first["jdsh"]
    # Through moments both times; at 512 rows the method itself takes arrays, which are cheaper there.
    ratios["djsrh_8192_vs_512"] = found["djsrh"]["large"] / found["djsrh"]["moments"]
    ratios["djsrh_8192_vs_512_by_arrays"] = found["djsrh"]["large"] / found["djsrh"]["small"]
    ratios["dcmh_step_vs_recipe"] = found["dcmh"]["recipe"] / found["dcmh"]["ours"]
    ratios["dcmh_step_vs_recipe_memory_kept"] = found["dcmh_again"]["recipe"] / found["dcmh_again"]["ours"]
    ratios["published_batch"] = max(found["published"].values())
    facts = {"max_gradient_error": max(errors), "peak_local_by_chunk_arrays": round(found["arrays"], 2)}
    rounded = {name: float(f"{value:.3g}") for name, value in ratios.items()}
    for name, value in rounded.items():
        print(f"{name:<32} {value:>8}", file=sys.stderr)
    by_batch = {name: round(value, 3) for name, value in found["published"].items()}
    print(f"ours / published, by batch and width: {by_batch}", file=sys.stderr)
    print(json.dumps({"ratios": rounded, **facts, "ours_over_published": by_batch}))


if __name__ == "__main__":
    main()
