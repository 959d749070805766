"""Run the whole chain on this machine and tell it on a page: draw a corpus, train JDSH at 64 bits on it, run
three nights over it (the first one, one after changes, one without), judge the model on pairs of another
seed beside its baselines, and search the release.

inputs: none; --set changes settings of training and night, such as train.epochs
outputs, below --dir (default: demo), which is emptied first:
  index.html   the page: open it in a browser, it needs no other file and no network
  corpus, heldout, runs, store   what the stages made

example:
  hashfleet demo --dir demo
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))

import argparse
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs import nightly, train
from jobs.command import Result
from jobs.config import Config, load_config
from jobs.demonstration.nights import RanNight, bytes_read, describe_nights, units_of
from jobs.demonstration.page import (
    MODEL,
    bits_of,
    commands,
    curves_of,
    folder_size,
    score_table,
    stored_sizes,
)
from jobs.demonstration.questions import ask, typical_example
from jobs.demonstration.source import Edits, Folders, change, clear, draw
from jobs.judging.judgement import Judgement, judge
from pipeline.encoding.models import open_model
from pipeline.quality.evaluation import DEFINITIONS
from pipeline.quality.profiles import pair_distances
from pipeline.quality.report import render
from pipeline.quality.report.content import Question, Report, Stage
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release

WRITES = True
RECIPES = Path(__file__).parent / "configs"
NIGHTS = ("first night", "second night", "third night")

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default="demo", help="folder for all that the demo makes")
    parser.add_argument("--rows", type=int, default=8000, help="pairs to train and encode")


@dataclass
class Demo:
    """One run of the demo: its folders and settings, and its stages as they come."""

    folders: Folders
    rows: int
    overrides: Sequence[str]
    args: argparse.Namespace
    started: float = field(default_factory=time.monotonic)
    stages: list[Stage] = field(default_factory=list)

    def settings(self, recipe: str, *overrides: str) -> Config:
        """Load a recipe with its paths moved into the demo's folder."""
        own = self.folders
        paths = (f"data.path={own.corpus}", f"run.dir={own.runs}", f"store.uri={own.store}")
        return load_config(str(RECIPES / f"{recipe}.yaml"), [*paths, *overrides, *self.overrides])

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[dict[str, int]]:
        """Time a stage; its rows and bytes are put into what this gives."""
        log.info("\n== %s", name)
        began, figures = time.monotonic(), dict[str, int]()
        yield figures
        self.stages.append(Stage(name, what, time.monotonic() - began, **figures))
        log.info("== %s: %.1f s", name, self.stages[-1].seconds)


def run(config: Config, args: argparse.Namespace) -> Result:
    """Run the stages one after another; the result line holds metrics, baselines and seconds per stage."""
    folder = Path(args.dir).resolve()
    if args.dry_run:
        log.info("would draw %d pairs, train, encode, publish, judge and search in %s", args.rows, folder)
        return Result()
    demo = Demo(clear(folder), args.rows, args.set, args)
    with demo.stage("corpus", "pictures drawn, captions written") as figures:
        figures["rows"] = draw(demo.folders, demo.rows)
        figures["bytes_written"] = folder_size(demo.folders.corpus, demo.folders.held_out)
    model = _train(demo)
    nights = [_night(demo, NIGHTS[0], model)]
    with demo.stage("change", "rows added, changed, deleted, broken") as figures:
        edits = change(demo.folders, demo.rows)
        figures["rows"] = sum(one.rows for one in edits.changes)
    nights.append(_night(demo, NIGHTS[1], model, before=nights[0]))
    nights.append(_night(demo, NIGHTS[2], model, before=nights[1]))
    judged = _judge(demo, model)
    questions = _search(demo, model)
    told = _report(demo, model, nights=nights, edits=edits, judged=judged, questions=questions)
    demo.folders.page.write_text(render(told), encoding="utf-8")
    log.info("\nthe page: %s", demo.folders.page.as_uri())
    return Result(
        outputs={"model": model, "release": nights[-1].release, "page": str(demo.folders.page)},
        metrics=judged.evaluations["model"].metrics,
        counts=nights[0].result.counts
        | {f"second_night_{name}": value for name, value in nights[1].result.counts.items()}
        | {"third_night_rows_encoded": nights[2].result.counts["rows_encoded"]},
        details={
            "baselines": judged.baselines,
            "stages": {stage.name: round(stage.seconds, 2) for stage in demo.stages},
        },
    )


def _train(demo: Demo) -> str:
    """Train the model and return its folder."""
    config = demo.settings("scenes_jdsh_64")
    epochs = config.train["epochs"]
    with demo.stage("train", f"{epochs} epochs under Ray Train and DeepSpeed") as figures:
        model = str(train.run(config, demo.args).outputs["model"])
        figures["rows"] = demo.rows * epochs
        figures["bytes_read"] = folder_size(demo.folders.corpus)
        figures["bytes_written"] = folder_size(Path(model))
    return model


def _night(demo: Demo, name: str, model: str, before: RanNight | None = None) -> RanNight:
    """Run the nightly job."""
    config = demo.settings("scenes_nightly", f"encode.model={model}")
    store, standing = Storage(demo.folders.store), folder_size(demo.folders.store)
    what = "compare, encode, index, publish" if before is None else "the same; what stands is reused"
    with demo.stage(name, "nothing has changed" if name == NIGHTS[2] else what) as figures:
        result = nightly.run(config, demo.args)
        if result.status != "done":
            raise RuntimeError(f"the {name} ended with status {result.status!r}: {result.details}")
        earlier = units_of(store, before.release) if before is not None else None
        figures["rows"] = result.counts["rows_read"] // 2  # a row is counted on both its sides
        figures["bytes_read"] = bytes_read(earlier, units_of(store, result.outputs["release"]))
        figures["bytes_written"] = folder_size(demo.folders.store) - standing
    return RanNight(name, result, demo.stages[-1].seconds)


def _judge(demo: Demo, model: str) -> Judgement:
    """Judge the model and its baselines on pairs of a seed that nothing was learnt from."""
    own = demo.folders
    held_out = (f"data.path={own.held_out}", f"evaluate.train={own.corpus}", "evaluate.baselines=true")
    config = demo.settings("scenes_jdsh_64", f"encode.model={model}", *held_out)
    with demo.stage("evaluate", "mAP of the model and of its baselines") as figures:
        lengths = [length for length in (32,) if config.method["code_length"] != length]
        judged = judge(config, cca_lengths=lengths, keep_relaxed=True)
        figures["rows"] = judged.counts["rows_read"] + demo.rows
        figures["bytes_read"] = folder_size(own.held_out, own.corpus)
    for name, metrics in {"model": judged.evaluations["model"].metrics, **judged.baselines}.items():
        log.info("%-10s I2T %.4f  T2I %.4f", name, metrics["map_i2t"], metrics["map_t2i"])
    return judged


def _search(demo: Demo, model: str) -> list[Question]:
    """Ask the newest release, and print what it answers."""
    own = demo.folders
    with demo.stage("search", "five texts and two pictures") as figures:
        method, release = open_model(model), Release.open(own.store)
        questions = ask(release, method, corpus=own.corpus, held_out=own.held_out)
        figures["rows"] = len(questions)
        figures["bytes_read"] = folder_size(own.store / "parts")
    for question in questions:
        print(f"\n{question.text or question.origin}  [{', '.join(question.labels)}]")
        for hit in question.hits:
            print(f"{hit.distance:>4}  {hit.key}  {', '.join(hit.shared) or 'miss'}")
    return questions


def _report(
    demo: Demo,
    model: str,
    *,
    nights: Sequence[RanNight],
    edits: Edits,
    judged: Judgement,
    questions: Sequence[Question],
) -> Report:
    """Gather what the page shows."""
    own, protocol = demo.folders, judged.evaluations["model"].protocol
    told = describe_nights(own, nights, edits)
    scores, curves = score_table(judged), curves_of(judged)
    stored = stored_sizes(own, nights[-1].release, judged)
    return Report(
        rows=told.nights[-1].ledgers[0].rows,
        queries=protocol.queries,
        retrieval_rows=protocol.retrieval_rows,
        code_length=protocol.code_length,
        seconds=time.monotonic() - demo.started,
        machine=f"{len(os.sched_getaffinity(0))} cores",
        model=MODEL,
        example=typical_example(own.held_out, judged.coded["model"][0]),
        questions=questions,
        scores=scores,
        definitions=DEFINITIONS,
        curves=curves,
        pair_distances=pair_distances(judged.coded["model"][1]),
        bits=bits_of(judged),
        stages=demo.stages,
        nights=told,
        stored=stored,
        commands=commands(own, model),
    )
