"""Is the built-in corpus a fair test? Random, CCA and ridge on fixed descriptors, on held-out rows.

    python benchmarks/corpus.py [--train 8000] [--queries 1000] [--retrieval 4000]

Learns on seed 1, chooses regularisers on validation rows of seed 1, asks and searches rows of seed 2.
Pictures are described by the classical descriptor that JDSH's target starts from, captions by tf-idf of
their 800 most frequent words. mAP@all, expected over ties. A corpus is the wrong one where CCA is as good as
ridge (nothing to learn beyond linear correlation), or where either is at random (nothing to find) or above
0.9 (nothing to miss). Also says how fast rows are drawn and decoded on one core.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from cmh_models.descriptor import describe_pixels
from cmh_models.words import words_of
from pipeline.corpus.decode import InputRecipe, Pairs, decode_pairs
from pipeline.corpus.scenes import LABELS, row
from pipeline.corpus.schema import Columns, resolve_columns
from pipeline.quality.baselines import Features, choose, choose_cca, fit_ridge, random_codes
from pipeline.quality.evaluation import CodedPairs, evaluate_codes

BITS = (32, 64)
WORDS = 800
TRAIN_SEED, HELD_OUT_SEED = 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=8000, help="rows of seed 1 to learn from")
    parser.add_argument("--queries", type=int, default=1000, help="first rows of seed 2, to ask with")
    parser.add_argument("--retrieval", type=int, default=4000, help="rows of seed 2 after them, to search")
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    speed: dict[str, float] = {}
    train = draw(TRAIN_SEED, range(sizes.train), speed)
    held_out = draw(HELD_OUT_SEED, range(sizes.queries + sizes.retrieval), speed)
    learned, asked = describe(train, held_out)
    results = measure(learned, asked, held_out, sizes.queries)
    facts = label_facts(train)
    report(results, facts | speed)


def draw(seed: int, numbers: range, speed: dict[str, float]) -> Pairs:
    """Draw rows and decode them as a job would; note the rates of both."""
    started = time.process_time()
    table = pa.Table.from_pylist([row(seed, number) for number in numbers])
    drawn = time.process_time()
    recipe = InputRecipe(image_size=64)
    pairs = decode_pairs(table, resolve_columns(table.schema, Columns(), where="scenes"), recipe)
    speed["rows_drawn_per_s"] = round(len(numbers) / (drawn - started))
    speed["pairs_decoded_per_s"] = round(len(numbers) / (time.process_time() - drawn))
    return pairs


def describe(train: Pairs, held_out: Pairs) -> tuple[Features, Features]:
    """Return the descriptions of both sets, scaled by what the train rows say."""
    images = [_describe_pictures(pairs.image) for pairs in (train, held_out)]
    mean, spread = images[0].mean(axis=0), images[0].std(axis=0) + 1e-6
    words = Counter(word for text in train.text for word in set(words_of(text, 256)))
    weights = {
        word: math.log(len(train.text) / count)
        for word, count in sorted(words.items(), key=_by_frequency)[:WORDS]
    }
    features = [
        Features((image - mean) / spread, _weigh_words(pairs.text, weights), pairs.labels or [])
        for image, pairs in zip(images, (train, held_out), strict=True)
    ]
    return features[0], features[1]


def measure(learned: Features, asked: Features, held_out: Pairs, queries: int) -> dict[str, dict[str, float]]:
    """Return mAP@all of both directions by name of the method."""

    def judge(codes: dict[str, np.ndarray]) -> dict[str, float]:
        parts = [
            CodedPairs(
                held_out.keys[part],
                held_out.ids[part],
                (held_out.labels or [])[part],
                {side: packed[part] for side, packed in codes.items()},
            )
            for part in (slice(None, queries), slice(queries, None))
        ]
        metrics = evaluate_codes(*parts).metrics
        return {name: round(metrics[name], 4) for name in ("map_i2t", "map_t2i", "map50_i2t", "map50_t2i")}

    results = {}
    for bits in BITS:
        results[f"random {bits}"] = judge(random_codes(len(held_out.keys), code_length=bits, seed=0))
        cca = choose_cca(learned, code_length=bits, seed=0)
        results[f"cca {bits}"] = judge(cca["cca"].codes(asked))
        ridge = choose(partial(fit_ridge, code_length=bits), learned, lengths=[bits], seed=0)[bits]
        results[f"ridge {bits}"] = judge(ridge.codes(asked))
    best = cca["cca_best"]
    results[f"cca best ({best.code_length})"] = judge(best.codes(asked))
    return results


def label_facts(pairs: Pairs) -> dict[str, float]:
    """Say how many labels there are and how unevenly they fall."""
    counts = np.bincount(np.concatenate(pairs.labels or []), minlength=len(LABELS)) / len(pairs.keys)
    lengths = [len(labels) for labels in pairs.labels or []]
    return {
        "labels": len(LABELS),
        "labels_per_pair_mean": round(float(np.mean(lengths)), 2),
        "labels_per_pair_min": min(lengths),
        "labels_per_pair_max": max(lengths),
        "rarest_label_share": round(float(counts.min()), 4),
        "commonest_label_share": round(float(counts.max()), 4),
    }


def report(results: dict[str, dict[str, float]], facts: dict[str, float]) -> None:
    """Print the table to stderr and one JSON line to stdout."""
    names = list(next(iter(results.values())))
    print(f"{'':16s}" + "".join(f"{name:>12s}" for name in names), file=sys.stderr)
    for method, values in results.items():
        print(f"{method:16s}" + "".join(f"{values[name]:12.3f}" for name in names), file=sys.stderr)
    for name, value in facts.items():
        print(f"{name}: {value}", file=sys.stderr)
    best = next(values for method, values in results.items() if method.startswith("cca best"))
    ratios = {}
    for direction in ("i2t", "t2i"):
        name = f"map_{direction}"
        ratios[f"ridge_64_to_cca_best_{direction}"] = round(results["ridge 64"][name] / best[name], 3)
        ratios[f"cca_best_to_random_{direction}"] = round(best[name] / results["random 64"][name], 3)
    print(json.dumps({"results": results, "facts": facts, "ratios": ratios}))


def _describe_pictures(pixels: np.ndarray) -> np.ndarray:
    blocks = [describe_pixels(torch.from_numpy(pixels[i : i + 512])) for i in range(0, len(pixels), 512)]
    return torch.cat(blocks).double().numpy()


def _by_frequency(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _weigh_words(texts: list[str], weights: dict[str, float]) -> np.ndarray:
    column = {word: number for number, word in enumerate(weights)}
    features = np.zeros((len(texts), len(weights)))
    for features_row, text in zip(features, texts, strict=True):
        for word in words_of(text, 256):
            if word in column:
                features_row[column[word]] += weights[word]
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
