"""What a server counts and says about itself, over HTTP in this process."""

from __future__ import annotations

import asyncio
import re

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from medclipsam.server.api.access import Access
from medclipsam.server.api.health import health_router, metrics_router
from medclipsam.server.base.metrics import CountInfers, Metrics, ServerState, outcome


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return name and values of the labels in the order of their names -> value."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for family in families for s in family.samples
    }


@pytest.fixture
def client(metrics: Metrics) -> TestClient:
    app = FastAPI()
    app.state.access = Access()

    @app.post("/infer/{model}")
    async def infer(model: str, status: int = 200) -> dict[str, str]:
        if status != 200:
            raise HTTPException(status, "no")
        return {"model": model}

    app.include_router(metrics_router(metrics))
    return TestClient(CountInfers(app, lambda: ["text_prompt"], metrics))


@pytest.mark.parametrize(
    ("status", "name"),
    [(200, "ok"), (404, "refused"), (400, "refused"), (503, "busy"), (500, "failed"), (502, "failed"), (499, "left")],
)
def test_an_infer_request_is_counted_by_model_and_outcome(
    client: TestClient, metrics: Metrics, status: int, name: str
) -> None:
    for _ in range(3):
        assert client.post("/infer/text_prompt", params={"status": status}).status_code == status
    found = samples(metrics)
    assert found["medclipsam_infer_requests_total", "text_prompt", name] == 3
    assert found["medclipsam_infer_seconds_count", "text_prompt"] == 3
    assert outcome(status) == name


def test_what_clients_make_up_is_no_label(client: TestClient) -> None:
    client.post("/infer/Doe%5EJohn", data={"params": '{"text": "secret words"}'})
    client.post("/infer/film?image=Doe")
    text = client.get("/metrics").text
    assert 'medclipsam_infer_requests_total{model="unknown",outcome="ok"} 2.0' in text
    assert not re.search("Doe|secret|film", text)


def test_other_requests_are_not_counted(client: TestClient, metrics: Metrics) -> None:
    client.get("/metrics")
    client.get("/infer/text_prompt")
    client.post("/infer/text_prompt/more")
    assert not [key for key in samples(metrics) if key[0] == "medclipsam_infer_requests_total"]


def test_a_client_that_left_is_counted_as_one(metrics: Metrics) -> None:
    async def gone(scope: object, receive: object, send: object) -> None:
        raise asyncio.CancelledError

    scope = {"type": "http", "method": "POST", "path": "/infer/text_prompt"}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(CountInfers(gone, lambda: ["text_prompt"], metrics)(scope, None, None))  # type: ignore[arg-type]
    assert samples(metrics)["medclipsam_infer_requests_total", "text_prompt", "left"] == 1


def test_stages_and_state_are_read_at_each_scrape(metrics: Metrics) -> None:
    metrics.observe_stages({"read": 0.02, "sam_embed": 2.0})
    metrics.observe_stages({"sam_embed": 4.0})
    metrics.state = lambda: ServerState(True, 7, 2, 1024, 3, {"allocated": 5, "free": 6})
    found = samples(metrics)
    assert found["medclipsam_stage_seconds_sum", "sam_embed"] == 6
    assert found["medclipsam_stage_seconds_count", "sam_embed"] == 2
    assert found["medclipsam_stage_seconds_bucket", "0.03", "read"] == 1
    assert found["medclipsam_stage_seconds_bucket", "0.01", "read"] == 0
    assert found["medclipsam_embedding_cache_hits_total",] == 7
    assert found["medclipsam_embedding_cache_misses_total",] == 2
    assert found["medclipsam_embedding_cache_bytes",] == 1024
    assert found["medclipsam_models_loaded",] == 1
    assert found["medclipsam_queue_length",] == 3
    assert found["medclipsam_gpu_memory_bytes", "allocated"] == 5
    assert found["process_resident_memory_bytes",] > 1e6


def test_health_needs_nothing_and_readiness_the_weights() -> None:
    reasons: list[str | None] = ["weights are missing", None]
    app = FastAPI()
    app.include_router(health_router(lambda: reasons.pop(0)))
    client = TestClient(app)
    assert client.get("/healthz").json() == {"status": "alive"}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not ready", "reason": "weights are missing"})
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
