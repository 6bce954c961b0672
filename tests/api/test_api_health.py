"""Probes while the server loads, works, drains and has lost its engine."""

import pytest

from server.engine.messages import Progress

PROBES = ("/health", "/health/live", "/health/startup", "/health/ready")


def statuses(served) -> list[int]:
    return [served.http.get(path).status_code for path in PROBES]


def test_a_server_that_works_says_so(served):
    assert statuses(served) == [200, 200, 200, 200]


def test_a_loading_server_is_alive_and_tells_how_far_it_is(own_server):
    ready, own_server.engine.ready = own_server.engine.ready, None
    assert statuses(own_server) == [200, 200, 503, 503]
    answer = own_server.http.get("/health/ready")
    assert answer.json()["progress"] == {"stage": "weights", "done": 3, "total": 10, "unit": "tensors"}
    assert answer.json()["error"]["code"] == "model_loading"
    own_server.engine.ready = ready
    assert statuses(own_server) == [200, 200, 200, 200]


def test_requests_to_a_loading_server_are_told_to_come_back(own_server):
    own_server.engine.ready = own_server.engine.card = None
    own_server.engine.progress = Progress("download", 0, 0, "bytes")
    for path in ("/v1/completions", "/tokenize"):
        answer = own_server.http.post(path, json={"prompt": "Hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
        assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert "download" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
    assert own_server.http.get("/v1/models").status_code == 503


def test_a_draining_server_takes_nothing_new(own_server):
    own_server.app.state.service.draining = True
    assert statuses(own_server) == [200, 200, 200, 503]
    answer = own_server.http.post("/v1/completions", json={"prompt": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_draining")
    assert answer.headers["connection"] == "close"
    assert answer.headers["retry-after"] == "5"


def test_a_server_without_its_engine_is_not_alive_and_keeps_the_reason_to_itself(own_server):
    own_server.engine.failure = "/root/model.gguf: truncated"
    assert statuses(own_server) == [503, 503, 200, 503]
    answer = own_server.http.post("/v1/completions", json={"prompt": "Hi"})
    assert answer.status_code == 503
    assert "gguf" not in answer.text


@pytest.mark.parametrize("path", PROBES)
def test_probes_count_as_no_rejections(own_server, path):
    own_server.engine.ready = None
    own_server.start_anew()
    own_server.http.get(path)
    assert own_server.gained('headrace_requests_rejected_total{reason="model_loading"}') == 0


def test_a_server_that_has_been_told_to_end_is_unready_and_still_takes_requests(own_server):
    own_server.app.state.service.leaving = True
    assert statuses(own_server) == [200, 200, 200, 503]
    assert own_server.http.post("/v1/completions", json={"prompt": "Hi"}).status_code == 200


def test_a_server_whose_engine_restarts_is_alive_and_unready_and_takes_requests(own_server):
    own_server.engine.is_up = False
    assert statuses(own_server) == [200, 200, 200, 503]
    assert own_server.http.get("/health/ready").json()["error"]["code"] == "engine_restarting"
    assert own_server.http.post("/v1/completions", json={"prompt": "Hi"}).status_code == 200


def test_a_server_whose_engine_hangs_is_not_alive(own_server):
    own_server.engine.is_hung = True
    assert statuses(own_server) == [503, 503, 200, 200]
