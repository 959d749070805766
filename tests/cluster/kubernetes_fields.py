"""Fields of a Kubernetes object: Ray's by its published types, others by the models of the client."""

from typing import Any

from kubernetes import client

# The json names in ray-operator/apis/ray/v1 of ray-project/kuberay: rayjob_types.go at 0057210ed5a9 and
# raycluster_types.go at 026f143324c0 (API ray.io/v1). A dict is a nested kind, a class a model of Kubernetes.
_POD = client.V1PodTemplateSpec
RAY_CLUSTER: dict[str, Any] = {
    "headGroupSpec": {
        "serviceType": None,
        "headService": client.V1Service,
        "enableIngress": None,
        "rayStartParams": None,
        "template": _POD,
    },
    "workerGroupSpecs": [
        {
            "groupName": None,
            "replicas": None,
            "minReplicas": None,
            "maxReplicas": None,
            "numOfHosts": None,
            "rayStartParams": None,
            "template": _POD,
            "scaleStrategy": None,
        }
    ],
    "rayVersion": None,
    "enableInTreeAutoscaling": None,
    "autoscalerOptions": {
        "resources": client.V1ResourceRequirements,
        "image": None,
        "imagePullPolicy": None,
        "env": None,
        "envFrom": None,
        "volumeMounts": None,
        "securityContext": client.V1SecurityContext,
        "idleTimeoutSeconds": None,
        "upscalingMode": None,
    },
    "headServiceAnnotations": None,
    "suspend": None,
}
RAY_JOB: dict[str, Any] = {
    "activeDeadlineSeconds": None,
    "backoffLimit": None,
    "rayClusterSpec": RAY_CLUSTER,
    "submitterPodTemplate": _POD,
    "metadata": None,
    "clusterSelector": None,
    "submitterConfig": {"backoffLimit": None},
    "managedBy": None,
    "deletionStrategy": None,
    "entrypoint": None,
    "runtimeEnvYAML": None,
    "jobId": None,
    "submissionMode": None,
    "entrypointResources": None,
    "entrypointNumCpus": None,
    "entrypointNumGpus": None,
    "ttlSecondsAfterFinished": None,
    "shutdownAfterJobFinishes": None,
    "suspend": None,
    "schedule": None,
}
REQUIRED = {"headGroupSpec", "rayStartParams", "template", "groupName", "minReplicas", "maxReplicas"}
"""Fields without `omitempty` in those types."""
KINDS: dict[tuple[str, str], Any] = {
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("batch/v1", "CronJob"): client.V1CronJob,
    ("v1", "ServiceAccount"): client.V1ServiceAccount,
    ("rbac.authorization.k8s.io/v1", "Role"): client.V1Role,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): client.V1RoleBinding,
}


def unknown_fields(body: dict[str, Any]) -> list[str]:
    """Return what an object has and its kind does not, or lacks and must have, as dotted names."""
    kind = KINDS[body["apiVersion"], body["kind"]]
    if not isinstance(kind, dict):
        return list(_of_model(body, kind, body["kind"]))
    metadata = _of_model(body["metadata"], client.V1ObjectMeta, "metadata")
    extra = [name for name in body if name not in ("apiVersion", "kind", "metadata", "spec")]
    return [*extra, *metadata, *_of_fields(body["spec"], kind, "spec")]


def _of_fields(value: Any, fields: Any, where: str) -> list[str]:
    if fields is None:
        return []
    if isinstance(fields, list):
        return [name for n, item in enumerate(value) for name in _of_fields(item, fields[0], f"{where}[{n}]")]
    if not isinstance(fields, dict):
        return _of_model(value, fields, where)
    found = [f"{where}.{name}" for name in value if name not in fields]
    found += [f"{where}.{name} is missing" for name in fields if name in REQUIRED and name not in value]
    for name in value.keys() & fields.keys():
        found += _of_fields(value[name], fields[name], f"{where}.{name}")
    return found


def _of_model(value: Any, model: Any, where: str) -> list[str]:
    names = {json: python for python, json in model.attribute_map.items()}
    found = [f"{where}.{name}" for name in value if name not in names]
    for name in value.keys() & names.keys():
        found += _of_type(value[name], model.openapi_types[names[name]], f"{where}.{name}")
    return found


def _of_type(value: Any, declared: str, where: str) -> list[str]:
    if declared.lower().startswith("list["):
        inner = declared[5:-1]
        return [name for n, item in enumerate(value) for name in _of_type(item, inner, f"{where}[{n}]")]
    model = getattr(client, declared, None)
    if hasattr(model, "openapi_types"):
        return _of_model(value, model, where)
    plain = {"str": str, "int": int, "bool": bool}.get(declared)
    return [f"{where} must be {declared}"] if plain is not None and not isinstance(value, plain) else []
