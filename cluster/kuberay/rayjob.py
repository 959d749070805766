"""Create a RayJob on Kubernetes and wait for its end: `python -m cluster.kuberay.rayjob FILE`.

The pod of a CronJob runs this, so that the pod lives as long as the job does and `concurrencyPolicy: Forbid`
keeps the next night away. Exit code 0: the job succeeded; 1: it failed or is gone; 2: the file is no RayJob.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import yaml

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
ENDED = ("Complete", "Failed")
"""States of a RayJob's deployment that do not change any more."""
SECONDS = 10.0


def read_rayjob(file: Path) -> dict[str, Any]:
    """Return the one RayJob of a file.

    Raises:
        ValueError: it holds something else.
    """
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = body.get("kind") if isinstance(body, dict) else type(body).__name__
    if kind != "RayJob":
        raise ValueError(f"{file} must hold one RayJob, got {kind}")
    return dict(body)


def run_rayjob(objects: Any, namespace: str, body: dict[str, Any], *, seconds: float = SECONDS) -> bool:
    """Create a RayJob, tell how it goes, and return whether its command ended with 0.

    Args:
        objects: a `kubernetes.client.CustomObjectsApi`.
        seconds: from one look to the next.
    """
    made = objects.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)
    name, told = made["metadata"]["name"], None
    while True:
        status = _status(objects, namespace, name)
        state = status.get("jobDeploymentStatus", "")
        if state != told:
            told = state
            print(f"{name}: {state or 'created'}", status.get("message", ""), flush=True)
        if state in ENDED:
            return bool(status.get("jobStatus") == "SUCCEEDED")
        time.sleep(seconds)


def _status(objects: Any, namespace: str, name: str) -> dict[str, Any]:
    found = objects.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name)
    return dict(found.get("status") or {})


def main(arguments: list[str] | None = None) -> int:
    """Run the RayJob of a file in the namespace of this pod."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--namespace", help="default: that of this pod")
    given = parser.parse_args(arguments)
    try:
        body = read_rayjob(given.file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2
    from kubernetes import client, config

    config.load_config()  # inside a pod its service account, else the user's own kubeconfig
    namespace = given.namespace or _own_namespace()
    try:
        return 0 if run_rayjob(client.CustomObjectsApi(), namespace, body) else 1
    except client.ApiException as error:
        print(f"Kubernetes answers {error.status} {error.reason}: {error.body}", file=sys.stderr)
        return 1


def _own_namespace() -> str:
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return file.read_text(encoding="utf-8").strip() if file.exists() else "default"


if __name__ == "__main__":
    sys.exit(main())
