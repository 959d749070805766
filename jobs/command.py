"""What every job shares: arguments, exit codes, the result line.

A job is a module of this package with a docstring (its help page), `run(config, args) -> Result`, and where
it needs them `add_arguments(parser)`, `WRITES = True` (it then takes --dry-run) and `remember(config, line)`,
to which the result line is handed however the run ended.
"""

import argparse
import errno
import json
import logging
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from jobs.cli import INTERRUPTED, USAGE_ERROR
from jobs.config import Config, load_config
from jobs.explaining import explain
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage, storage_retries

Status = Literal["done", "refused", "failed", "locked"]
EXIT_CODES: dict[Status, int] = {"done": 0, "failed": 1, "refused": 3, "locked": 4}

EPILOG = """exit codes:
  0  done
  1  failed
  2  usage or config error
  3  the gate refused what would have been published
  4  another run holds the lease
  130 interrupted

The last line of stdout is one JSON object: job, status, seconds, outputs, metrics, counts."""


@dataclass
class Result:
    """What a job hands back; the fields are those of the result line."""

    status: Status = "done"
    outputs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # further top-level fields, such as baselines
    code: int | None = None  # the exit code, where it is not the one of the status


def run_job(name: str, job: ModuleType, argv: list[str]) -> int:
    """Run one job from its command line and return its exit code.

    Errors that the user can mend (ValueError, TypeError, from config or input) end in one line and exit code
    2; what the world did (storage, cluster, a broken store) in one line and 1; anything else is a fault of
    ours and comes with its traceback.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s", force=True)
    for library in ("botocore", "aiobotocore"):  # tell where each credential came from
        logging.getLogger(library).setLevel(logging.WARNING)
    args = _parser(name, job).parse_args(argv)
    started = time.monotonic()
    config: Config | None = None
    try:
        config = load_config(args.config, args.set)
        if args.print_config:
            print(yaml.safe_dump(config.resolved(), sort_keys=False), end="")
            return 0
        kept = Storage(config.run.dir)
        result, code = job.run(config, args), None
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        result, code = Result("failed", details={"error": "interrupted"}), INTERRUPTED
    except Exception as error:
        result, code = _failure(name, error, debug=args.debug)
    line = {"job": name, "status": result.status, "seconds": round(time.monotonic() - started, 3)}
    again = storage_retries()  # of this process; those of a cluster's workers are theirs
    metrics = result.metrics | ({"storage_retries": again} if again else {})
    line |= {"outputs": result.outputs, "metrics": metrics, "counts": result.counts} | result.details
    if config is not None and code is None and not getattr(args, "dry_run", False):
        _keep(kept, config, name=name, line=line)
    if config is not None and hasattr(job, "remember") and not getattr(args, "dry_run", False):
        job.remember(config, line)
    if "cluster.runtime" in sys.modules:
        sys.modules["cluster.runtime"].disconnect()
    sys.stderr.flush()
    print(json.dumps(line), flush=True)
    if code is not None:
        return code
    return EXIT_CODES[result.status] if result.code is None else result.code


def _parser(name: str, job: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"hashfleet {name}",
        description=job.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings of the run")
    parser.add_argument(
        "--set", metavar="A.B=C", action="append", default=[], help="override one setting; may be repeated"
    )
    parser.add_argument("--print-config", action="store_true", help="print every setting and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    if getattr(job, "WRITES", False):
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    if hasattr(job, "add_arguments"):
        job.add_arguments(parser)
    return parser


def _failure(name: str, error: Exception, *, debug: bool) -> tuple[Result, int]:
    if isinstance(error, ManifestError):
        code = EXIT_CODES["failed"]
    elif isinstance(error, ValueError | TypeError):
        code = USAGE_ERROR
    elif isinstance(error, OSError | RuntimeError | ImportError):
        code = EXIT_CODES["failed"]
    else:
        code, debug = EXIT_CODES["failed"], True
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message = _in_words(error)
    print(f"{name}: {message}", file=sys.stderr)
    return Result("failed", details={"error": message}), code


WHAT_TO_DO = {
    errno.EACCES: "give this user access, or name another place",
    errno.EPERM: "give this user access, or name another place",
    errno.EROFS: "name another place",
    errno.ENOTDIR: "a folder was expected above it; name another place",
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def _in_words(error: Exception) -> str:
    """Return an error as one line; of the operating system's, where it was and what to do come along."""
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        told = f"{os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}"
        advice = WHAT_TO_DO.get(error.errno)
        return " ".join(f"{told}; {advice}".split() if advice else told.split())
    return " ".join(str(error).split()) or type(error).__name__


def settings_text(config: Config) -> bytes:
    """Return the settings of a run as YAML that `--config` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode()


def _keep(folder: Storage, config: Config, *, name: str, line: dict[str, Any]) -> None:
    """Leave the result and the settings beside the outputs of the run; the run itself is over by now."""
    try:
        folder.write(f"{config.run.name}/{name}/run.json", json.dumps(line, indent=1).encode())
        folder.write(f"{config.run.name}/{name}/config.yaml", settings_text(config))
    except OSError as error:
        print(f"{name}: run.json is not kept: {_in_words(error)}; see run.dir", file=sys.stderr)
