"""What one GPU reaches: a training step, the loss of a large batch, encoding, each beside its limit.

    python benchmarks/gpu.py [--only step loss encode] [--rounds 5]
    OMP_NUM_THREADS=1 python benchmarks/gpu.py --device cpu --tiny   # only to see that it runs

`step_vs_bare` (goal .92): forward and backward of a ViT-B/16 and a text transformer of CLIP's size in bf16,
over a step of our loop with the same networks and rows: collation, JDSH's loss and the optimiser included.
`step_vs_bare_described`: the same where targets come from a frozen copy of each network, whose forward pass
the bare side has not. `loss_ms`, `loss_vs_products` (goal: 1.5 ms or .6): JDSH's loss and gradient of 4,096
rows against 32,768, and the matrix products alone over it. `encode_vs_limit` (goal .90): rows a second of a
night's encoders, over the smaller of the forward pass alone and of decoding alone on all cores.
Weights and rows are random. Prints figures to stderr and one JSON line.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import encode, loss
from benchmarks.published_losses import BITS, Rows, draw
from cmh_models import build_method
from cmh_models.artefact import save_pretrained
from cmh_models.method import HashMethod
from cmh_models.towers import TowersConfig
from jobs.config import Config
from jobs.nights.actors import join_cluster
from jobs.nights.night import open_night
from jobs.training.pretrained import fill_towers
from pipeline.encoding.encoder import encode_side
from pipeline.encoding.rows import chunk_row, decode_row
from pipeline.learning.engine.local import LocalEngine
from pipeline.learning.training import Hooks, TrainConfig, fit, to_batch

WORDS = ["a", "red", "boat", "on", "the", "waves", "two", "houses", "at", "night", "near", "some", "trees"]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    vision: dict[str, int]
    text: dict[str, int]
    rows: int = 256  # of a training step
    local: int = 4096  # of the loss
    total: int = 32768
    width: int = 512  # of the features of each side
    units: tuple[int, int] = (16, 80)  # of a small and a large night
    unit_rows: int = 512


FULL = Size(
    vision={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
    | {"intermediate_size": 3072, "patch_size": 16},
    text={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    | {"vocab_size": 49408, "max_position_embeddings": 77},
)
TINY = Size(
    vision={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    | {"intermediate_size": 24, "patch_size": 16},
    text={"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    | {"vocab_size": 64, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1},
    rows=16,
    local=256,
    total=1024,
    units=(2, 6),
    unit_rows=32,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small shapes: the figures mean nothing")
    parts: dict[str, Callable[[Size, str, Path, int], dict[str, float]]]
    parts = {"step": measure_step, "loss": measure_loss, "encode": measure_encode}
    parser.add_argument("--only", nargs="+", choices=tuple(parts), default=tuple(parts))
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --tiny only shows that it runs")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.only:
            found = parts[name](TINY if asked.tiny else FULL, asked.device, Path(scratch), asked.rounds)
            ratios |= found
            say(f"{name}: { ({key: round(value, 3) for key, value in found.items()}) }")
    device = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    rounded = {key: round(value, 4) for key, value in ratios.items()}
    print(json.dumps({"device": device, "tiny": asked.tiny, "ratios": rounded}))


def towers(size: Size, folder: Path, *, described_by: str = "plain") -> TowersConfig:
    """Return the settings of both backbones with random weights, all filled in."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, ViTConfig

    image, text = folder / "vision", folder / "text"
    ViTConfig(**size.vision).save_pretrained(image)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (image / "preprocessor_config.json").write_text(json.dumps(half))
    CLIPTextConfig(**size.text).save_pretrained(text)
    tokeniser = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[UNK]", *WORDS])}, "[UNK]"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser.save(str(text / "tokenizer.json"))
    common = {"name": "transformers", "weights": "none", "described_by": described_by}
    sides = {"image": common | {"model": str(image)}, "text": common | {"model": str(text)}}
    return fill_towers(TowersConfig.model_validate(sides))


class SameRows:
    """Batches of drawn rows, the same at every step, decoded already."""

    def __init__(self, size: Size, steps: int) -> None:
        rng = np.random.default_rng(0)
        side = size.vision["image_size"]
        self.steps_per_epoch = steps
        self.rows = {
            "key": [str(number) for number in range(size.rows)],
            "image": rng.integers(0, 256, (size.rows, side, side, 3), dtype=np.uint8),
            "text": [" ".join(rng.choice(WORDS, 40)) for _ in range(size.rows)],
        }

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, Any]]:
        for _ in range(first_step, self.steps_per_epoch):
            yield self.rows


def measure_step(size: Size, device: str, folder: Path, rounds: int) -> dict[str, float]:
    """Time steps of our loop beside forward and backward passes of the same networks."""
    ratios = {}
    for described_by, name in (("plain", "step_vs_bare"), ("backbone", "step_vs_bare_described")):
        spec = {"name": "jdsh", "code_length": BITS, "feature_rounds": 2, "moment_rounds": 2}
        config = towers(size, folder, described_by=described_by)
        method = build_method(spec | {"threshold_rounds": 2}, config.model_dump())
        batches = SameRows(size, 4 + rounds)
        settings = TrainConfig.model_validate(
            {"global_batch_size": size.rows, "epochs": 1, "precision": "bf16", "log_every": 10**6}
        )
        engine, began = LocalEngine(method, settings, device=device), list[float]()

        def clock(step: int | None, began: list[float] = began) -> None:
            finish(device)
            if step is not None:
                began.append(time.perf_counter())

        fit(engine, batches, settings, hooks=Hooks(step=clock))
        ours = statistics.median(np.diff(began)[3:].tolist())
        batch = to_batch(method, batches.rows, engine.device)
        bare = in_turn(rounds, device, bare=lambda: networks(method, batch, device))["bare"]  # noqa: B023
        say(f"targets by {described_by}: step {1e3 * ours:.1f} ms, bare {1e3 * bare:.1f} ms")
        ratios[name] = bare / ours
    return ratios


def networks(method: HashMethod, batch: dict[str, torch.Tensor], device: str) -> None:
    """Go forward and back through both networks, in bf16, and nothing else."""
    method.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
        codes = [getattr(method, side)(batch[side], None) for side in ("image", "text")]
    torch.stack([code.float().square().sum() for code in codes]).sum().backward()


def measure_loss(size: Size, device: str, folder: Path, rounds: int) -> dict[str, float]:
    """Time JDSH's loss and gradient of a rank's rows against all, beside its matrix products."""
    drawn = draw(size.total, (size.width, size.width))
    with torch.device(device):
        moved = [tuple(value.to(device) for value in pair) for pair in (drawn.features, drawn.codes)]
        rank = loss.JdshRank(Rows(*moved), size.local)  # type: ignore[arg-type]
        inner = 4 * size.width + 2 * BITS
        rows, columns = torch.randn(size.local, inner), torch.randn(size.total, inner)
    made = torch.empty(size.local, loss.CHUNK, device=device)

    def products() -> None:
        for first in range(0, size.total, loss.CHUNK):
            part = columns[first : first + loss.CHUNK]
            torch.mm(rows, part.T, out=made[:, : len(part)])

    taken = in_turn(4 * rounds, device, ours=rank.step, products=products)
    return {"loss_ms": 1e3 * taken["ours"], "loss_vs_products": taken["products"] / taken["ours"]}


def measure_encode(size: Size, device: str, folder: Path, rounds: int) -> dict[str, float]:
    """Compare a night's encoders on Ray with the forward pass alone and with decoding alone."""
    place, side = folder / "night", size.vision["image_size"]
    method = build_method({"name": "jdsh", "code_length": BITS}, towers(size, folder).model_dump())
    save_pretrained(method, folder / "encoder", card={})
    pictures = [encode.photograph(n) for n in range(16)]
    for number in range(size.units[1]):
        columns = {
            "key": [f"{number}-{n}" for n in range(size.unit_rows)],
            "image": (pictures * size.unit_rows)[: size.unit_rows],
            "text": [" ".join(WORDS)] * size.unit_rows,
        }
        encode.write(place / "source" / f"{number:03d}.parquet", columns, row_group_size=1024)
    settings = {
        "data": {"path": str(place / "source")},
        "encode": {"model": str(folder / "encoder")},
        "store": {"uri": str(place / "store")},
        "resources": {"gpu": device == "cuda"},
    }
    night = open_night(Config.model_validate(settings), argparse.Namespace())
    night.keep_model()
    join_cluster(night)
    taken = [
        encode.wall_seconds(encode.run_ray, night, encode.works_of(night, str(count))[:count])
        for count in size.units
    ]
    together = (size.units[1] - size.units[0]) * size.unit_rows / (taken[1] - taken[0])
    method.to(device).eval()
    shown = np.zeros((size.unit_rows, side, side, 3), np.uint8)
    tile = night.config.encode.tile

    def forward() -> None:
        encode_side(method, "image", shown, tile=tile)
        encode_side(method, "text", [" ".join(WORDS)] * size.unit_rows, tile=tile)

    alone = size.unit_rows / in_turn(rounds, device, forward=forward)["forward"]
    rows = [chunk_row(c, work) for work in encode.works_of(night, "decode") for c in work.chunks]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        tasks = [(row, night.source, night.store) for row in rows]
        pool.starmap(_decoded, tasks[: size.units[0]])
        started = time.perf_counter()
        pool.starmap(_decoded, tasks, chunksize=1)
        decoding = len(rows) * size.unit_rows / (time.perf_counter() - started)
    rates = {"rows_per_second": together, "forward_per_second": alone, "decode_per_second": decoding}
    return {"encode_vs_limit": together / min(alone, decoding), **rates}


def _decoded(row: Any, source: Any, store: Any) -> int:
    return len(decode_row(row, source, store)["decoded"])


def in_turn(rounds: int, device: str, **works: Callable[[], Any]) -> dict[str, float]:
    """Return the median seconds of each, run in turn after two calls to warm up, the device waited for."""

    def waited(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            work()
            finish(device)

        return run

    timed = {name: waited(work) for name, work in works.items()}
    for work in timed.values():
        work()
    return loss.in_turn(rounds, **timed)


def finish(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
