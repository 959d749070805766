"""The `hashfleet` command: `hashfleet train ...` is `python jobs/train.py ...`."""

import importlib
import json
import sys

from jobs.stopping import sigterm_interrupts

USAGE_ERROR, INTERRUPTED = 2, 130

JOBS = {
    "train": "train a hash network on image-text shards",
    "export": "write the model of a run from a checkpoint",
    "encode": "re-encode what has changed into packed codes",
    "build_index": "build the missing index parts of a store",
    "nightly": "encode, index and publish one release",
    "evaluate": "judge a model: mAP in both directions, with baselines",
    "benchmark_methods": "the table of methods: each on every set, beside baselines",
    "search": "search a release by text, picture or code",
    "export_codes": "write a release's codes for FAISS, usearch, Milvus, numpy or a benchmark",
    "releases": "look after the releases of a store: verify, roll back, explain, forget, gc",
    "status": "the age of the newest release, the last failure, the lease",
    "import_data": "write your own data as Parquet that the other jobs read",
    "check_data": "look at data before anyone spends GPU hours on it",
    "demo": "run the whole chain on a corpus of drawn scenes",
}


def main(argv: list[str] | None = None) -> int:
    """Run the job that the first argument names; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hashfleet JOB [--config FILE] [--set A.B=C] ...\n\njobs:")
        for name, purpose in JOBS.items():
            print(f"  {name:<18} {purpose}")
        print("\n`hashfleet JOB --help` tells more.")
        return 0 if arguments else USAGE_ERROR
    name, *rest = arguments
    if name not in JOBS:
        print(f"unknown job {name!r}; known: {', '.join(JOBS)}", file=sys.stderr)
        return USAGE_ERROR
    try:
        with sigterm_interrupts():
            # Imported late: whoever asks for help waits for no library, and a stop is heard while they load.
            from jobs.command import run_job

            return run_job(name, importlib.import_module(f"jobs.{name}"), rest)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        line = {"job": name, "status": "failed", "outputs": {}, "metrics": {}, "counts": {}}
        print(json.dumps(line | {"error": "interrupted"}), flush=True)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
