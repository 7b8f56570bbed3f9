"""Kubernetes manifests for a model's container. Pure: values in, YAML out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import ModelVersion

PORT = 8080
_DRAIN_SECONDS = 30


def manifests(version: ModelVersion, image: str, replicas: tuple[int, int]) -> dict[str, str]:
    """Files by name: deployment.yaml (Deployment, Service, autoscaler), kserve.yaml."""
    name = kubernetes_name(version.name)
    labels = {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/version": str(version.version),
        "app.kubernetes.io/managed-by": "aios-jupyter",
    }
    selector = {"app.kubernetes.io/name": name}
    head = (
        f"# {version.ref}. First a token for its clients:\n"
        f"#   kubectl create secret generic {name}-token "
        "--from-literal=token=$(openssl rand -hex 32)\n"
    )
    documents = [
        _deployment(name, labels, selector, image, replicas[0]),
        _service(name, labels, selector),
        _autoscaler(name, labels, replicas),
        _budget(name, labels, selector),
    ]
    return {
        "deployment.yaml": head + _yaml(documents),
        "kserve.yaml": head + _yaml([_inference_service(name, labels, image, replicas)]),
    }


def kubernetes_name(name: str) -> str:
    """A model's name as Kubernetes takes names: lower case, dashes, at most 52 characters."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:52].strip("-")
    return words if words[:1].isalpha() else f"m-{words}".strip("-")


def _yaml(documents: list[dict[str, Any]]) -> str:
    import yaml

    return str(yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True))


def _metadata(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "labels": dict(labels)}


def _deployment(
    name: str, labels: dict[str, str], selector: dict[str, str], image: str, replicas: int
) -> dict[str, Any]:
    annotations = {"prometheus.io/port": str(PORT), "prometheus.io/path": "/metrics"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name, labels),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(selector)},
            # A new version is ready before an old one ends.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {
                "metadata": {"labels": dict(labels), "annotations": annotations},
                "spec": _pod(name, image),
            },
        },
    }


def _pod(name: str, image: str) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _DRAIN_SECONDS + 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_server(image)],
        "volumes": [
            {
                "name": "token",
                "secret": {"secretName": f"{name}-token", "defaultMode": 0o440},
            },
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _server(image: str) -> dict[str, Any]:
    def probe(path: str, **timing: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "http"}, **timing}

    return {
        "name": "model",
        "image": image,
        "args": ["--grace", str(_DRAIN_SECONDS)],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": "500m", "memory": "256Mi"},
            "limits": {"cpu": "2", "memory": "2Gi"},
        },
        "startupProbe": probe("/v2/health/ready", periodSeconds=2, failureThreshold=60),
        "readinessProbe": probe("/v2/health/ready", periodSeconds=5),
        "livenessProbe": probe("/v2/health/live", periodSeconds=10, failureThreshold=3),
        # Requests still come for a moment after an endpoint was taken off the service.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {
                "name": "token",
                "mountPath": "/run/secrets/token",
                "subPath": "token",
                "readOnly": True,
            },
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # in the container
        ],
    }


def _service(name: str, labels: dict[str, str], selector: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, labels),
        "spec": {
            "selector": dict(selector),
            # The protocol is the default one; older servers apply lists of ports by it.
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _autoscaler(name: str, labels: dict[str, str], replicas: tuple[int, int]) -> dict[str, Any]:
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(name, labels),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": replicas[0],
            "maxReplicas": replicas[1],
            "metrics": [{"type": "Resource", "resource": cpu}],
        },
    }


def _budget(name: str, labels: dict[str, str], selector: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(name, labels),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}},
    }


def _inference_service(
    name: str, labels: dict[str, str], image: str, replicas: tuple[int, int]
) -> dict[str, Any]:
    pod = _pod(name, image)
    server = dict(pod["containers"][0], name="kserve-container")
    del server["lifecycle"], server["startupProbe"]  # Knative has its own way to drain
    server["ports"] = [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}]
    for kind in ("readinessProbe", "livenessProbe"):
        server[kind] = {**server[kind], "httpGet": {**server[kind]["httpGet"], "port": PORT}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": _metadata(name, labels),
        "spec": {
            "predictor": {
                "minReplicas": replicas[0],
                "maxReplicas": replicas[1],
                **pod,
                "containers": [server],
            }
        },
    }
