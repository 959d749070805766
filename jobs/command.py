"""What every job shares: arguments, exit codes, the result line.

A job is a module of this package with a docstring (its help page), `run(config, args) -> Result`, and where
it needs them `add_arguments(parser)` and `WRITES = True` (it then takes --dry-run).
"""

import argparse
import json
import logging
import sys
import time
import traceback
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import yaml

from jobs.config import Config, load_config
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage

Status = Literal["done", "refused", "failed", "locked"]
EXIT_CODES: dict[Status, int] = {"done": 0, "failed": 1, "refused": 3, "locked": 4}
USAGE_ERROR, INTERRUPTED = 2, 130

EPILOG = """exit codes:
  0  done
  1  failed
  2  usage or config error
  3  the release gate refused; nothing was published
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
    args = _parser(name, job).parse_args(argv)
    started = time.monotonic()
    config: Config | None = None
    try:
        config = load_config(args.config, args.set)
        if args.print_config:
            print(yaml.safe_dump(config.resolved(), sort_keys=False), end="")
            return 0
        result, code = job.run(config, args), None
    except KeyboardInterrupt:
        result, code = Result("failed", details={"error": "interrupted"}), INTERRUPTED
    except Exception as error:
        result, code = _failure(name, error, debug=args.debug)
    line = {"job": name, "status": result.status, "seconds": round(time.monotonic() - started, 3)}
    line |= {"outputs": result.outputs, "metrics": result.metrics, "counts": result.counts} | result.details
    if config is not None and code is None and not getattr(args, "dry_run", False):
        _keep(config, name, line)
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
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"{name}: {message}", file=sys.stderr)
    return Result("failed", details={"error": message}), code


def _keep(config: Config, name: str, line: dict[str, Any]) -> None:
    """Leave the result and the settings beside the outputs of the run."""
    folder = Storage(config.run.dir)
    folder.write(f"{config.run.name}/{name}/run.json", json.dumps(line, indent=1).encode())
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    folder.write(f"{config.run.name}/{name}/config.yaml", settings.encode())
