"""What the custom resources of our manifests may say: their definitions' schemas, as far as we use them.

Sources: keda.sh/docs (ScaledObject, the prometheus scaler), prometheus-operator.dev (PodMonitor),
gateway-api-inference-extension.sigs.k8s.io/reference/spec (InferencePool v1), gateway-api.sigs.k8s.io (HTTPRoute v1),
docs.ray.io (RayService v1; its pods' templates are Kubernetes' own).
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(h|m|s|ms))+$"}


def record(*required: str, **fields: Schema) -> Schema:
    """An object of these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def several(item: Schema, least: int = 1) -> Schema:
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def resource(spec: Schema) -> Schema:
    metadata = record("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)
    return record("apiVersion", "kind", "metadata", "spec", apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=spec)


SELECTOR = record("matchLabels", matchLabels=LABELS)
SCALING_POLICY = record(
    "type", "value", "periodSeconds", type=one_of("Pods", "Percent"), value=COUNT, periodSeconds=COUNT
)
SCALING = record(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy=one_of("Max", "Min", "Disabled"),
    policies=several(SCALING_POLICY),
)
PROMETHEUS_TRIGGER = record(
    "type",
    "metadata",
    type=one_of("prometheus"),
    metadata=record(
        *("serverAddress", "query", "threshold"),
        serverAddress={"type": "string", "pattern": r"^https?://[^/]+"},
        query=TEXT,
        threshold={"type": "string", "pattern": r"^[0-9.]+$"},
        activationThreshold={"type": "string", "pattern": r"^[0-9.]+$"},
        ignoreNullValues=one_of("true", "false"),
    ),
)
RELABELING = record(
    sourceLabels=several(TEXT),
    regex=TEXT,
    targetLabel=TEXT,
    replacement=TEXT,
    action=one_of("replace", "keep", "drop", "labeldrop", "labelkeep", "labelmap"),
)
RAY_GROUP: dict[str, Schema] = {
    "rayStartParams": LABELS,
    "template": {"type": "object"},
}

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledObject"): resource(
        record(
            *("scaleTargetRef", "triggers"),
            scaleTargetRef=record("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            pollingInterval=COUNT,
            cooldownPeriod=COUNT,
            fallback=record("failureThreshold", "replicas", failureThreshold=COUNT, replicas=COUNT),
            advanced=record(horizontalPodAutoscalerConfig=record(behavior=record(scaleUp=SCALING, scaleDown=SCALING))),
            triggers=several(PROMETHEUS_TRIGGER),
        )
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): resource(
        record(
            *("selector", "podMetricsEndpoints"),
            jobLabel=TEXT,
            selector=SELECTOR,
            podMetricsEndpoints=several(
                record(port=TEXT, path=TEXT, interval=DURATION, metricRelabelings=several(RELABELING))
            ),
        )
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): resource(
        record(
            groups=several(
                record(
                    *("name", "rules"),
                    name=TEXT,
                    rules=several(
                        record(
                            *("expr",),
                            alert=TEXT,
                            record=TEXT,
                            expr=TEXT,
                            labels=LABELS,
                            annotations=LABELS,
                            **{"for": DURATION},
                        )
                    ),
                )
            )
        )
    ),
    ("inference.networking.k8s.io/v1", "InferencePool"): resource(
        record(
            *("selector", "targetPorts", "endpointPickerRef"),
            selector=SELECTOR,
            targetPorts=several(record("number", number=PORT)) | {"maxItems": 8},
            appProtocol=one_of("http", "kubernetes.io/h2c"),
            endpointPickerRef=record(
                *("name", "port"),
                group={"type": "string"},
                kind=TEXT,
                name=TEXT,
                port=record("number", number=PORT),
                failureMode=one_of("FailOpen", "FailClose"),
            ),
        )
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): resource(
        record(
            parentRefs=several(record("name", name=TEXT, namespace=TEXT, sectionName=TEXT)),
            hostnames=several(TEXT),
            rules=several(
                record(
                    matches=several(record(path=record(type=one_of("Exact", "PathPrefix"), value=TEXT))),
                    backendRefs=several(record("name", group=TEXT, kind=TEXT, name=TEXT, port=PORT)),
                    timeouts=record(request=DURATION, backendRequest=DURATION),
                )
            ),
        )
    ),
    ("ray.io/v1", "RayService"): resource(
        record(
            *("serveConfigV2", "rayClusterConfig"),
            serviceUnhealthySecondThreshold=COUNT,
            deploymentUnhealthySecondThreshold=COUNT,
            serveConfigV2=TEXT,
            rayClusterConfig=record(
                *("headGroupSpec",),
                rayVersion={"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+$"},
                enableInTreeAutoscaling={"type": "boolean"},
                headGroupSpec=record("rayStartParams", "template", **RAY_GROUP),
                workerGroupSpecs=several(
                    record(
                        *("groupName", "rayStartParams", "template"),
                        groupName=TEXT,
                        replicas=COUNT,
                        minReplicas=COUNT,
                        maxReplicas=COUNT,
                        **RAY_GROUP,
                    )
                ),
            ),
        )
    ),
}
