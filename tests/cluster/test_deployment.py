"""The deployment files name fields that exist, and the commands in them are ours and parse."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kubernetes_fields import unknown_fields

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_every_field_of_a_kubernetes_file_is_published(file: Path) -> None:
    for body in documents(file):
        assert unknown_fields(body) == []


def test_a_field_that_is_not_published_is_found() -> None:
    body = documents(CLUSTER / "kuberay" / "train.yaml")[0]
    body["spec"]["entryPoint"] = "x"
    pod = body["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    pod["template"]["spec"]["containers"][0]["images"] = "x"
    del pod["groupName"]
    found = unknown_fields(body)
    group = "spec.rayClusterSpec.workerGroupSpecs[0]"
    assert sorted(found) == [
        "spec.entryPoint",
        f"{group}.groupName is missing",
        f"{group}.template.spec.containers[0].images",
    ]


def test_the_ray_version_is_the_one_that_is_installed() -> None:
    import ray

    text = "".join(file.read_text() for file in KUBERNETES)
    assert set(re.findall(r'rayVersion: "(.*)"', text)) == {ray.__version__}


def test_every_account_that_a_pod_runs_as_is_made_by_one_of_the_files() -> None:
    made = {
        body["metadata"]["name"]
        for file in KUBERNETES
        for body in documents(file)
        if body["kind"] == "ServiceAccount"
    }
    text = "".join(file.read_text() for file in KUBERNETES)
    assert set(re.findall(r"serviceAccountName: (\S+)", text)) == made


def test_a_second_night_is_forbidden_while_one_runs() -> None:
    cron = documents(CLUSTER / "kuberay" / "night.yaml")[0]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    command = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "cluster.kuberay.rayjob"]


def test_ray_up_files_are_valid_by_rays_own_schema() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTER / "ray_up" / "aws.yaml").read_text())
    jsonschema.validate(config, schema)
    spot = config["available_node_types"]["spot_gpu"]["node_config"]
    assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(config | {"max_worker": 3}, schema)


def entrypoints() -> list[Any]:
    """Return every command of ours in the deployment files, with /app standing for the clone."""
    found = []
    for file in KUBERNETES:
        for body in documents(file):
            if body["kind"] == "RayJob":
                found.append(pytest.param(body["spec"]["entrypoint"], id=file.name))
    script = (CLUSTER / "slurm" / "train.sbatch").read_text()
    given = re.search(r"sbatch cluster/slurm/train.sbatch (.*)", script)[1].replace("$SCRATCH", "/scratch")
    line = f"python jobs/train.py {given.replace('FILE', 'jobs/configs/clip_jdsh_64.yaml')}"
    return [*found, pytest.param(line, id="train.sbatch")]


@pytest.mark.parametrize("entrypoint", entrypoints())
def test_every_entrypoint_is_a_command_whose_settings_hold(entrypoint: str) -> None:
    words = shlex.split(entrypoint.replace("/app/", f"{ROOT}/"))
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:], "--print-config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_slurm_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", CLUSTER / "slurm" / "train.sbatch"], check=True)


def dockerfile() -> list[str]:
    """Return the instructions of the Dockerfile, one a line, without comments."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]


def test_the_image_holds_what_the_house_is_made_of_and_its_extras_exist() -> None:
    import tomllib

    text = "\n".join(dockerfile())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r'-e "\.\[(.*)\]"', text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored
    # Everything else stays out: data, secrets and environments that lie in a clone, or below what is taken.
    assert ignored[0] == "*" and {line for line in ignored if line.startswith("!")} == {
        f"!{source.rstrip('/')}"
        for sources in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE)
        for source in sources.split()
    }


def test_every_stage_of_the_image_ends_as_a_user_and_the_entrypoints_lie_where_it_puts_them() -> None:
    lines = dockerfile()
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    stages = {
        lines[start].split()[-1]: lines[start:end]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    }
    assert set(stages) == {"base", "cpu", "gpu"}
    assert "WORKDIR /app" in stages["base"]
    assert any("useradd" in line and line.split()[-1] == "ray" for line in stages["base"])
    copied = [word for line in stages["base"] if line.startswith("COPY") for word in line.split()[1:-1]]
    for target in ("cpu", "gpu"):
        assert stages[target][0] == f"FROM base AS {target}" and stages[target][-1] == "USER ray"
    for file in KUBERNETES:
        for path in re.findall(r"/app/(\S+)", file.read_text()):
            assert path.split("/")[0] in copied and (ROOT / path).is_file()


def test_the_image_holds_what_each_way_to_start_it_calls() -> None:
    lines = dockerfile()
    (install,) = [line for line in lines if "apt-get install" in line]
    programs = set(install.split("--no-install-recommends ")[1].split(" && ")[0].split())
    # KubeRay's probes; ray stop; how the head of `ray up` reaches its workers.
    assert {"wget", "procps", "openssh-client", "rsync"} <= programs
    extras = [set(found.split(",")) for found in re.findall(r'-e "\.\[(.*)\]"', "\n".join(lines))]
    assert len(extras) == 2
    for kind in extras:
        assert {"cluster", "kube", "aws"} <= kind, "rayjob.py needs kube, Ray's AWS provider aws"


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no apt-cache to ask for packages")
def test_the_packages_that_the_image_and_the_tests_install_exist() -> None:
    from tests import ceph, slurm

    (install,) = [line for line in dockerfile() if "apt-get install" in line]
    asked = install.split("--no-install-recommends ")[1].split(" && ")[0].split()
    for package in (*asked, *ceph.PACKAGES, *slurm.PACKAGES):
        found = subprocess.run(
            ["apt-cache", "policy", package], capture_output=True, text=True, check=True
        ).stdout
        if not found:
            pytest.skip("no package lists here: apt-get update")
        assert "Candidate: (none)" not in found, package


class Cluster:
    """The two answers of a Kubernetes API that a RayJob's life needs, over HTTP."""

    def __init__(self, states: list[dict[str, str]]) -> None:
        self.made: list[dict[str, Any]] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body["metadata"]["name"] = body["metadata"]["generateName"] + "x1"
                cluster.made.append(body)
                self.answer(201, body)

            def do_GET(self) -> None:
                status = states.pop(0) if len(states) > 1 else states[0]
                self.answer(200, cluster.made[-1] | {"status": status})

            def answer(self, code: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host = f"http://127.0.0.1:{self.server.server_port}"


@pytest.mark.parametrize(("end", "succeeded"), [("SUCCEEDED", True), ("FAILED", False)])
def test_the_pod_of_the_cron_job_lives_as_long_as_its_ray_job(
    end: str, succeeded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from kubernetes import client

    from cluster.kuberay.rayjob import read_rayjob, run_rayjob

    last = {
        "jobDeploymentStatus": "Complete" if succeeded else "Failed",
        "jobStatus": end,
        "message": "the end",
    }
    cluster = Cluster([{}, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, last])
    configuration = client.Configuration(host=cluster.host)
    with client.ApiClient(configuration) as api:
        body = read_rayjob(CLUSTER / "kuberay" / "night_job.yaml")
        assert run_rayjob(client.CustomObjectsApi(api), "default", body, seconds=0.01) is succeeded
    cluster.server.shutdown()
    assert cluster.made[0]["spec"]["entrypoint"].startswith("python /app/jobs/nightly.py")
    assert "the end" in capsys.readouterr().out


def test_a_file_without_a_ray_job_is_refused_before_kubernetes_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster.kuberay.rayjob import main

    assert main([str(CLUSTER / "kuberay" / "interactive.yaml")]) == 2
    assert "must hold one RayJob, got RayCluster" in capsys.readouterr().err


def test_the_dashboard_shows_metrics_that_the_jobs_have() -> None:
    from jobs.nights.actors import FIGURES

    dashboard = json.loads((CLUSTER / "grafana" / "hashfleet.json").read_text())
    shown = {
        found
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for found in re.findall(r"ray_hashfleet_(\w+)\{", target["expr"])
    }
    night = {name for name in shown if not name.startswith("train_")}
    assert night <= FIGURES.keys()
    health = {f"{side}_{name}" for side in ("image", "text") for name in ("dead_bits", "entropy")}
    own = {"loss", "rows_per_second", "data_wait", "learning_rate"} | health
    assert {name.removeprefix("train_") for name in shown - night} == own
