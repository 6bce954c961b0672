"""Streams that are read over more than one connection: nothing lost, nothing twice, nothing told to others."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from starlette.types import Message, Send
from support import wait_until

from server.api.connection import Client
from server.api.resumable import Keeping, ResumableStreams
from server.errors import StreamTakenOver
from server.exactness.receipt import RECEIPT
from server.metrics import Metrics
from server.quotas import UNLIMITED, Account

WISH = {"x-headrace-resumable": "true"}
RESUMED = "headrace_streams_resumed_total"
ABANDONED = "headrace_streams_abandoned_total"
DISCONNECTED = 'headrace_requests_finished_total{reason="disconnect"}'
SHORT = {"prompt": "Hi", "max_tokens": 150}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
KEYS = ("first-key", "second-key")
MANY = "".join(f"{number} " for number in range(60))


class Reader:
    """Reads a stream event by event, over a connection that nobody else uses."""

    def __init__(self, served, method: str, path: str, headers: dict[str, str], **fields: object) -> None:
        request = served.http.build_request(method, path, headers=headers, **fields)
        self.answer = served.http.send(request, stream=True)
        self.id = self.answer.headers.get("x-headrace-stream", "")
        self.events = self._events()

    def _events(self) -> Iterator[tuple[str, str]]:
        """Ids and data."""
        id = ""
        for line in self.answer.iter_lines():
            if line.startswith("id: "):
                id = line.removeprefix("id: ")
            elif line.startswith("data: "):
                yield id, line.removeprefix("data: ")

    def take(self, count: int) -> list[tuple[str, str]]:
        return [next(self.events) for _ in range(count)]

    def leave(self) -> None:
        self.answer.close()


def post(served, path: str = "/v1/completions", body: dict = SHORT, **headers: str) -> Reader:
    return Reader(served, "POST", path, WISH | headers, json=body | {"stream": True})


def resume(served, id: str, last: str | None = None, **headers: str) -> Reader:
    return Reader(served, "GET", f"/v1/streams/{id}", headers | ({"last-event-id": last} if last else {}))


def get(served, id: str, last: str | None = None, **headers: str) -> httpx.Response:
    return served.http.get(f"/v1/streams/{id}", headers=headers | ({"last-event-id": last} if last else {}))


def begin(served, text: str) -> tuple[Reader, tuple[str, str]]:
    """A stream of a held engine that has said so much, and the event that tells it."""
    engine, place = served.engine, len(served.engine.orders)
    with ThreadPoolExecutor() as threads:
        posting = threads.submit(post, served)  # it has its headers with the first event
        engine.wait_until(lambda: len(engine.orders) > place)
        engine.say(place, text)
        reader = posting.result(10)
    return reader, next(reader.events)


def take_cut(reader: Reader) -> list[tuple[str, str]]:
    """What comes until the connection is closed without its end."""
    events = []
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        events.extend(iter(lambda: next(reader.events), None))
    return events


def told(events: list[tuple[str, str]]) -> list[dict]:
    """What the choices say, and the usage: all of it must have come, and in one piece."""
    *chunks, (_, done) = events
    assert done == "[DONE]"
    assert [int(id.rpartition(":")[2]) for id, _ in events] == list(range(1, len(events) + 1))
    return [json.loads(chunk) for _, chunk in chunks]


def said(chunks: list[dict]) -> dict[int, tuple[str, list, list]]:
    """Of each choice its text, the entries of its logprobs, and its ends."""
    choices: dict[int, tuple[str, list, list]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        text, entries, ends = choices.get(choice["index"], ("", [], []))
        text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
        logprobs = choice["logprobs"] or {}
        entries = [*entries, *(logprobs.get("content") or zip(*logprobs.values(), strict=True))]
        choices[choice["index"]] = text, entries, [*ends, *filter(None, [choice["finish_reason"]])]
    return choices


@pytest.fixture(scope="module")
def module_server(start_server):
    return start_server()


@pytest.fixture
def talking(module_server):
    module_server.start_anew()
    module_server.engine.is_held = False
    module_server.engine.answer = MANY
    return module_server


@pytest.fixture
def held(talking):
    """Its engine says nothing by itself."""
    talking.engine.is_held = True
    return talking


REQUESTS = {
    "completion": ("/v1/completions", {"prompt": "Hi", "max_tokens": 150}),
    "prompts": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 90, "echo": True}),
    "logprobs": ("/v1/completions", {"prompt": "Hi", "logprobs": 2, "max_tokens": 150}),
    "stop string": ("/v1/completions", {"prompt": "Hi", "stop": "33", "max_tokens": 150}),
    "usage": ("/v1/completions", {"prompt": "Hi", "max_tokens": 150, "stream_options": {"include_usage": True}}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat of all": (
        "/v1/chat/completions",
        CHAT | {"n": 3, "logprobs": True, "top_logprobs": 2, "stop": ["40"], "stream_options": {"include_usage": True}},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_that_is_cut_again_and_again_says_what_an_ordinary_one_says(talking, name):
    path, body = REQUESTS[name]
    plain = talking.http.post(path, json=body | {"stream": True}).text
    golden = [json.loads(line.removeprefix("data: ")) for line in plain.split("\n\n")[:-2]]
    reader, seen = post(talking, path, body), []
    receipt = reader.answer.headers[RECEIPT]
    assert re.fullmatch("[0-9a-f]{32}", reader.id)
    for count in (1, 2, 1, 3):
        seen += reader.take(count)
        reader.leave()
        assert seen[-1][0] == f"{reader.id}:{len(seen)}"
        reader = resume(talking, reader.id, seen[-1][0])
        assert reader.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.answer.headers[RECEIPT] == receipt
    seen += reader.events
    chunks = told(seen)
    assert said(chunks) == said(golden)
    assert [chunk.get("usage") for chunk in chunks if chunk.get("usage")] == [
        chunk["usage"] for chunk in golden if chunk.get("usage")
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert talking.gained(RESUMED) == 4
    assert talking.gained(ABANDONED) == talking.gained(DISCONNECTED) == 0
    assert talking.gained("headrace_requests_accepted_total") == 2


def test_what_came_meanwhile_is_told_at_once_and_to_the_end(held):
    reader, first = begin(held, "one ")
    reader.leave()
    held.engine.say(0, "two ")
    held.engine.say(0, "three", finish="stop")
    rest = [*resume(held, reader.id, first[0]).events]
    assert said(told([first, *rest])) == {0: ("one two three", [], ["stop"])}
    assert held.engine.cancelled == []
    assert held.gained('headrace_requests_finished_total{reason="stop"}') == 1
    assert [*resume(held, reader.id, first[0]).events] == rest, "until it is forgotten it can be read again"
    assert [*resume(held, reader.id).events] == [first, *rest], "without a last event, from the beginning"
    assert get(held, reader.id, rest[-1][0]).status_code == 204
    assert held.gained(RESUMED) == 3


def test_a_reader_that_does_not_come_back_ends_the_sequence_once(serve):
    served = serve(keeping=Keeping(grace_s=0.05))
    served.start_anew()
    served.engine.is_held = True
    reader, _ = begin(served, "half")
    reader.leave()
    served.wait_for(ABANDONED, 1)
    served.wait_for(DISCONNECTED, 1)
    assert served.engine.cancelled == [0]
    assert get(served, reader.id).status_code == 404


def test_what_was_read_to_its_end_is_forgotten(serve):
    served = serve(keeping=Keeping(grace_s=0.05))
    served.start_anew()
    reader = post(served)
    events = [*reader.events]
    assert len(told(events)) == len(served.engine.answer) + 1
    wait_until(lambda: get(served, reader.id, events[-1][0]).status_code == 404)
    assert served.streams._streams == served.streams._unread == {}
    assert served.streams._size == 0
    assert served.gained(ABANDONED) == 0


def test_a_reader_that_leaves_before_the_first_event_could_not_come_back(held):
    connection = held.send("/v1/completions", b'{"prompt": "Hi", "stream": true}', "X-Headrace-Resumable: true")
    held.engine.wait_until(lambda: held.engine.orders)
    connection.close()
    held.wait_for(DISCONNECTED, 1)
    assert held.engine.cancelled == [0]
    assert held.gained(ABANDONED) == 0


def test_the_newest_reader_takes_over_and_the_older_one_is_told_so(held):
    older, first = begin(held, "one ")
    with ThreadPoolExecutor() as threads:
        newer = threads.submit(resume, held, older.id, first[0])
        ((_, last),) = take_cut(older)
        assert json.loads(last)["error"]["code"] == "stream_taken_over"
        held.engine.say(0, "two", finish="stop")
        rest = [*newer.result(5).events]
    assert said(told([first, *rest])) == {0: ("one two", [], ["stop"])}
    assert held.engine.cancelled == []
    assert held.gained("headrace_client_disconnects_total") == 0


async def test_a_reader_that_sleeps_is_no_obstacle_to_the_next():
    """Its connection stands, full of what it does not read."""
    streams = ResumableStreams(Keeping(), Metrics())
    always, seen = Client(asyncio.get_running_loop().create_future()), []

    async def answer(client: Client, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": number < 4})

    is_stuck = asyncio.Event()

    async def never(message: Message) -> None:
        is_stuck.set()
        await asyncio.Event().wait()

    async def read(message: Message) -> None:
        seen.extend(re.findall(rb"data: (\d)", message.get("body", b"")))

    stream = streams.open({"state": {"account": Account(None, UNLIMITED)}}, answer)
    asleep = asyncio.create_task(stream.tell(always, 0, never))
    await is_stuck.wait()
    await stream.tell(always, 0, read)
    assert seen == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(StreamTakenOver):
        await asleep
    await streams.close()


def test_only_the_key_that_began_a_stream_resumes_it(serve):
    served = serve(api_keys=KEYS)
    mine, others = ({"authorization": f"Bearer {key}"} for key in KEYS)
    reader = post(served, **mine)
    events = [*reader.events]
    assert [*resume(served, reader.id, **mine).events] == events
    for id, headers in ((reader.id, others), ("0" * 32, mine), ("0" * 32, others)):
        answer = get(served, id, "malformed", **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "stream_not_found")
        assert answer.json() == get(served, "anything", **mine).json()
    assert get(served, reader.id).status_code == 401


def test_an_event_that_was_never_sent_is_refused_by_the_headers_name(talking):
    reader = post(talking)
    last = [*reader.events][-1][0]
    number = int(last.rpartition(":")[2])
    wrong = [f"{reader.id}:{number + 1}", f"{reader.id}:0", f"{reader.id}:-1", f"{reader.id}:01", f"{reader.id}:"]
    for event in [*wrong, f"{reader.id}:{'9' * 400}", "1", "\u00b2", f"{'0' * 32}:1", last + " ?", reader.id, '"']:
        answer = talking.http.get(f"/v1/streams/{reader.id}", headers={"last-event-id": event.encode()})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "Last-Event-ID", "invalid_value")
        assert "Last-Event-ID" in error["message"]


@pytest.mark.parametrize(("value", "is_streamed"), [("yes", True), ("", True), ("True", False), ("true", False)])
def test_a_wish_that_cannot_be_honoured_is_refused_by_its_name(talking, value, is_streamed):
    headers = {"x-headrace-resumable": value}
    answer = talking.http.post("/v1/completions", json=SHORT | {"stream": is_streamed}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-headrace-resumable")
    assert talking.engine.orders == []


def test_no_wish_is_an_ordinary_stream(talking):
    answer = talking.http.post(
        "/v1/completions", json=SHORT | {"stream": True}, headers={"x-headrace-resumable": "false"}
    )
    assert "x-headrace-stream" not in answer.headers
    assert "id: " not in answer.text


def test_a_fault_is_told_to_every_reader_after_what_came_before_it(held):
    reader, first = begin(held, "one ")
    reader.leave()
    held.engine.say(0, "two")
    held.engine.say(0, "", finish="error", error="the row was not finite")
    for _ in range(2):
        (_, two), (id, fault) = take_cut(resume(held, reader.id, first[0]))
        assert json.loads(two)["choices"][0]["text"] == "two"
        assert json.loads(fault)["error"]["message"].endswith("the row was not finite.")
    answer = get(held, reader.id, id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert held.gained('headrace_requests_finished_total{reason="error"}') == 1


def test_a_request_that_is_refused_leaves_nothing_to_resume(own_server):
    own_server.engine.is_full = True
    answer = own_server.http.post("/v1/completions", json=SHORT | {"stream": True}, headers=WISH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert own_server.streams._streams == {}
    assert own_server.gained('headrace_requests_rejected_total{reason="server_is_overloaded"}') == 1


def test_a_stream_keeps_its_newest_events_only(serve):
    served = serve(keeping=Keeping(stream_bytes=2000))
    served.engine.answer = MANY
    reader = post(served)
    events = [*reader.events]
    assert served.streams._size <= 2000
    assert [*resume(served, reader.id, events[-3][0]).events] == events[-2:]
    for early in (None, events[0][0]):
        answer = get(served, reader.id, early)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "stream_not_found")


def test_streams_that_nobody_misses_make_room_for_others(serve):
    served = serve(keeping=Keeping(total_bytes=16_000))
    served.start_anew()
    served.engine.is_held = True
    left, first = begin(served, "half")
    left.leave()
    served.engine.is_held = False
    served.engine.answer = "x" * 20
    ids = []
    for _ in range(5):
        reader = post(served)
        told([*reader.events])
        ids.append(reader.id)
    assert 8_000 < served.streams._size <= 16_000
    assert [get(served, id).status_code for id in ids] == [404, 404, 404, 200, 200]
    served.engine.say(0, "", finish="stop")
    assert said(told([first, *resume(served, left.id, first[0]).events])) == {0: ("half", [], ["stop"])}
    assert served.gained(ABANDONED) == 0


def test_of_streams_without_a_reader_the_first_is_abandoned_for_others(serve):
    served = serve(keeping=Keeping(total_bytes=1_500))
    served.start_anew()
    served.engine.is_held = True
    left = [begin(served, "x" * 300) for _ in range(3)]
    for place, (reader, _) in enumerate(left):
        reader.leave()
        if place < 2:
            served.wait_for("headrace_client_disconnects_total", place + 1)
    reader, _ = begin(served, "x" * 300)
    reader.leave()
    served.wait_for(DISCONNECTED, 2)
    assert served.engine.cancelled == [0, 1]
    assert served.gained(ABANDONED) == 2


def test_openais_client_reads_a_resumable_stream_unchanged(talking):
    client = openai.OpenAI(base_url=f"{talking.url}/v1", api_key="none", max_retries=0)
    with client.completions.create(model="bytes", **SHORT, stream=True, extra_headers=WISH) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
        assert re.fullmatch("[0-9a-f]{32}", stream.response.headers["x-headrace-stream"])
    client.close()
    assert text == MANY[:150]
