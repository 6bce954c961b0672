"""Spans of requests, as a collector gets them by OTLP over HTTP."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from server.tracing import OpenTelemetry

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MESSAGES = [{"role": "user", "content": "Methuselah"}]


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    @property
    def spans(self) -> dict[str, Span]:
        """By name."""
        scopes = [scope for batch in self.received for part in batch.resource_spans for scope in part.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(_plain(body, self.headers)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _plain(body: bytes, headers: Any) -> bytes:
    assert headers["content-type"] == "application/x-protobuf"
    assert headers.get("content-encoding", "identity") == "identity"
    return body


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture
def traced(collector: Collector, serving_for_a_while: Callable[..., Any]) -> Callable[..., Any]:
    """A server: when it has ended, the collector has everything."""

    @contextmanager
    def traced(has_content: bool = False) -> Iterator[Any]:
        with (
            OpenTelemetry(collector.url, has_content=has_content) as tracer,
            serving_for_a_while(tracer=tracer) as served,
        ):
            yield served

    return traced


def told(span: Span) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


def test_a_chat_is_a_span_within_its_requests_within_the_callers_trace(traced, collector: Collector) -> None:
    with traced() as served:
        body = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0.5, "seed": 7, "top_k": 3, "stop": ["xyz"]}
        answer = served.http.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        served.http.get("/health/ready")
        served.http.get("/metrics")
    assert collector.spans.keys() == {"POST /v1/chat/completions", "chat bytes"}
    request, chat = collector.spans["POST /v1/chat/completions"], collector.spans["chat bytes"]
    assert request.trace_id.hex() == chat.trace_id.hex() == TRACE
    assert (request.parent_span_id.hex(), chat.parent_span_id) == (CALLER, request.span_id)
    assert (request.kind, chat.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL)
    assert request.start_time_unix_nano <= chat.start_time_unix_nano < chat.end_time_unix_nano
    assert told(request) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
    }
    usage = answer.json()["usage"]
    stages = {f"headrace.{stage}.duration" for stage in ("queue", "prefill", "decode")}
    said = told(chat)
    assert {name: said[name] for name in said.keys() - stages} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": "bytes",
        "gen_ai.response.model": "bytes",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.stop_sequences": ["xyz"],
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "headrace.request.id": answer.headers["x-request-id"],
    }
    assert "Methuselah" not in str(collector.received)
    assert "Hello" not in str(collector.received)


@pytest.mark.parametrize("name", ["headrace", "mine"])
def test_the_service_has_a_name_that_operators_may_change(
    traced, collector: Collector, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "headrace":
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    with traced() as served:
        served.http.get("/v1/models")
    (part,) = collector.received[0].resource_spans
    assert {each.key: each.value.string_value for each in part.resource.attributes}["service.name"] == name


def test_a_stream_of_two_choices_tells_when_it_began(traced, collector: Collector) -> None:
    with traced() as served:
        served.http.post("/v1/completions", json={"prompt": "Hi", "n": 2, "stream": True})
    said = told(collector.spans["text_completion bytes"])
    assert said["gen_ai.request.choice.count"] == 2
    assert said["gen_ai.response.finish_reasons"] == ["stop", "stop"]
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < 60
    assert said["gen_ai.request.stream"] is True


def test_what_is_asked_and_answered_is_told_where_that_is_wished(traced, collector: Collector) -> None:
    with traced(has_content=True) as served:
        served.http.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
        served.http.post("/v1/completions", json={"prompt": "Hi"})
    chat, completion = told(collector.spans["chat bytes"]), told(collector.spans["text_completion bytes"])
    text = [{"type": "text", "content": "Hello, world!"}]
    assert json.loads(chat["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Methuselah"}]}
    ]
    for said in (chat, completion):
        assert json.loads(said["gen_ai.output.messages"]) == [
            {"role": "assistant", "parts": text, "finish_reason": "stop"}
        ]
    assert json.loads(completion["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "Hi"}]


def test_what_reads_and_writes_nothing_has_spans_too(traced, collector: Collector) -> None:
    with traced(has_content=True) as served:
        embedded = served.http.post("/v1/embeddings", json={"input": ["Hi", "Ho"], "dimensions": 2})
        question = {"type": "predicate", "instructions": "It is a cat."}
        decided = served.http.post("/v1/decisions", json={"input": "Methuselah", "questions": [question]})
    for answer, name in ((embedded, "embeddings"), (decided, "decision")):
        assert answer.status_code == 200, answer.text
        said = told(collector.spans[f"{name} bytes"])
        assert said["gen_ai.operation.name"] == name
        assert said["gen_ai.usage.input_tokens"] > 0
        assert not said.keys() & {"gen_ai.request.temperature", "gen_ai.usage.output_tokens", "gen_ai.output.messages"}
    embeddings, decision = told(collector.spans["embeddings bytes"]), told(collector.spans["decision bytes"])
    assert embeddings["gen_ai.embeddings.dimension.count"] == 2
    assert embeddings["gen_ai.request.encoding_formats"] == ["float"]
    parts = [message["parts"][0]["content"] for message in json.loads(embeddings["gen_ai.input.messages"])]
    assert parts == ["Hi", "Ho"]
    assert "Methuselah" in decision["gen_ai.input.messages"]
    assert decision["headrace.questions"] == 1


@pytest.mark.parametrize("header", ["", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff"])
def test_a_refused_request_is_no_error_of_ours_and_a_broken_header_begins_a_trace(
    traced, collector: Collector, header: str
) -> None:
    with traced() as served:
        answer = served.http.post(
            "/v1/completions",
            json={"prompt": "Hi", "temperature": 9},
            headers=[(b"traceparent", header.encode("latin-1"))],
        )
        assert answer.status_code == 400
    (request,) = collector.spans.values()
    assert told(request)["http.response.status_code"] == 400
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert len(request.trace_id) == 16
    assert not request.parent_span_id


def test_failures_are_told_as_such(traced, collector: Collector) -> None:
    with traced() as served:
        served.engine.is_held = True
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(served.http.post, "/v1/completions", json={"prompt": "a"})
            served.engine.wait_until(lambda: len(served.engine.streams) == 1)
            served.engine.say(0, "", "error", "as the test asked for")
            assert answer.result().status_code == 500
        served.engine.is_full = True
        assert served.http.post("/tokenize", json={"prompt": "a"}).status_code == 200
        assert served.http.post("/v1/chat/completions", json={"messages": MESSAGES}).status_code == 503
    completion = collector.spans["text_completion bytes"]
    assert (completion.status.code, told(completion)["error.type"]) == (Status.STATUS_CODE_ERROR, "error")
    failed, refused = collector.spans["POST /v1/completions"], collector.spans["POST /v1/chat/completions"]
    assert (told(failed)["error.type"], told(refused)["error.type"]) == ("500", "503")
    assert "chat bytes" not in collector.spans, "it was not taken on"


def test_a_collector_that_is_gone_costs_nobody_an_answer(serve) -> None:
    with OpenTelemetry("http://127.0.0.1:9/v1/traces", has_content=False) as tracer:
        served = serve(tracer=tracer)
        assert served.http.post("/v1/completions", json={"prompt": "Hi"}).status_code == 200


def test_without_the_extra_all_but_traces_works() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None\n"
        "from server.config import OptionError, ServeOptions\n"
        "from server import serve\n"
        "assert serve._tracer(ServeOptions()) is None\n"
        "for wrong in ({'traces': 'http://a/'}, {'traces': 'a'}, {'trace_content': True}):\n"
        "    try: serve._tracer(ServeOptions(**wrong))\n"
        "    except OptionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["--traces:", "--traces:", "--trace-content:"]
    assert "headrace[otel]" in done.stdout
