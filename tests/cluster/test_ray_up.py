"""`ray up` with our file, by Ray's own code for AWS, against a server that answers as EC2 and IAM do.

The machines of that server are records: what Ray does on them by SSH is not run.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.permissions import ANYTHING, add_user, demand_permissions, policy
from tests.s3 import running_server, s3_environment

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "ray_up" / "aws.yaml"
FILL = """
import sys
import yaml
from ray.autoscaler.sdk import bootstrap_config

with open(sys.argv[1]) as file, open(sys.argv[2], "w") as full:
    yaml.safe_dump(bootstrap_config(yaml.safe_load(file)), full)
"""
"""What `ray up` leaves on the head: the file with keys, networks and groups filled in."""
WORKER = """
import sys
import yaml
from ray.autoscaler._private.providers import _get_node_provider

with open(sys.argv[1]) as file:
    config = yaml.safe_load(file)
provider = _get_node_provider(config["provider"], config["cluster_name"])
tags = {"ray-node-type": "worker", "ray-node-name": "w", "ray-user-node-type": "spot_gpu"}
if sys.argv[2] == "stays":
    provider.create_node(config["available_node_types"]["spot_gpu"]["node_config"], tags, 1)
else:
    (worker,) = provider.non_terminated_nodes({"ray-node-type": "worker"})
    provider.terminate_node(worker)
"""
"""What the head's autoscaler does when a worker is wanted, and when it is not any more."""

pytestmark = pytest.mark.slow


@dataclass
class Cloud:
    """Where machines are rented, and what a user there has in the environment."""

    endpoint: str
    environment: dict[str, str]

    def run(self, *words: str, key: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=self.environment | (key or {}), cwd=ROOT, capture_output=True, text=True, check=False
        )

    def instances(self, kind: str) -> list[dict[str, Any]]:
        import boto3

        chosen = [
            {"Name": "tag:ray-cluster-name", "Values": ["hashfleet"]},
            {"Name": "tag:ray-node-type", "Values": [kind]},
        ]
        found = boto3.Session().client("ec2").describe_instances(Filters=chosen)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud with the instance profiles of the file, and a user who has a token of Ray's."""
    import boto3

    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with running_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        own = s3_environment(endpoint) | add_user("owner", ANYTHING)
        for name, value in own.items():
            patch.setenv(name, value)
        iam = boto3.Session().client("iam")
        for name in ("hashfleet-head", "hashfleet-trainer"):
            iam.create_instance_profile(InstanceProfileName=name)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
        # Ray waits so long for a machine to let it in: none does.
        here = {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "AUTOSCALER_NODE_START_WAIT_S": "1",
            "TMPDIR": str(home),
        }
        yield Cloud(endpoint, clean | own | here)


def check(instance: dict[str, Any], kind: str) -> None:
    """Compare a machine with what the file says of its kind."""
    config = yaml.safe_load(FILE.read_text())
    asked = config["available_node_types"][kind]["node_config"]
    assert instance["State"]["Name"] in ("pending", "running")
    assert instance["InstanceType"] == asked["InstanceType"]
    assert instance["ImageId"] == asked["ImageId"]
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{asked['IamInstanceProfile']['Name']}")
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["ray-user-node-type"] == kind
    spot = asked.get("InstanceMarketOptions", {}).get("MarketType")
    assert instance.get("InstanceLifecycle") == spot
    import boto3

    (disk,) = instance["BlockDeviceMappings"]
    (volume,) = boto3.Session().client("ec2").describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert volume["Size"] == asked["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]


def test_ray_up_rents_the_head_and_the_head_rents_spot_workers(cloud: Cloud, tmp_path: Path) -> None:
    import boto3

    ray = str(Path(sys.executable).parent / "ray")
    up = cloud.run(ray, "up", "--yes", "--disable-usage-stats", str(FILE))
    assert "Acquiring an up-to-date head node" in up.stdout, up.stderr
    (head,) = cloud.instances("head")
    check(head, "head")
    (group,) = (
        boto3.Session()
        .client("ec2")
        .describe_security_groups(GroupIds=[found["GroupId"] for found in head["SecurityGroups"]])[
            "SecurityGroups"
        ]
    )
    open_to_all = [
        rule["FromPort"] for rule in group["IpPermissions"] if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
    ]
    assert open_to_all == [22], "the dashboard is reached through SSH alone"

    users = {name: add_user(name, policy(name)) for name in ("head", "trainer")}
    demand_permissions(cloud.endpoint)
    full = str(tmp_path / "full.yaml")
    made = cloud.run(sys.executable, "-c", FILL, str(FILE), full)
    assert made.returncode == 0, made.stderr
    refused = cloud.run(sys.executable, "-c", WORKER, full, "stays", key=users["trainer"])
    assert refused.returncode and "not authorized to perform: ec2:RunInstances" in refused.stderr
    made = cloud.run(sys.executable, "-c", WORKER, full, "stays", key=users["head"])
    assert made.returncode == 0, made.stderr
    (worker,) = cloud.instances("worker")
    check(worker, "spot_gpu")
    assert worker["KeyName"] == head["KeyName"] and worker["SecurityGroups"] == head["SecurityGroups"]
    ended = cloud.run(sys.executable, "-c", WORKER, full, "ends", key=users["head"])
    assert ended.returncode == 0, ended.stderr
    assert {found["State"]["Name"] for found in cloud.instances("worker")} == {"terminated"}
    (head,) = cloud.instances("head")
    assert head["State"]["Name"] == "running"
