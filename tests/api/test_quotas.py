"""What a key may take, what it is told of that, and that clients wait for more as they are told."""

from collections.abc import Callable
from functools import partial

import openai
import pytest
from support import wait_until

from server import keys
from server.errors import RateLimited
from server.quotas import Account, Quota, duration

KEYS = ("one", "two")
PROMPT = {"prompt": "Hi"}
ONE = {"authorization": "Bearer one"}
TWO = {"authorization": "Bearer two"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def account(clock: Clock) -> Callable[..., Account]:
    return lambda **quota: Account("ada", Quota(**quota), clock=clock)


def refusal(action: Callable[[], object]) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        action()
    return caught.value


def spend(account: Account, foreseen: int, used: int) -> None:
    with account.spending(foreseen) as spending:
        spending.tokens = used


def remaining(account: Account, kind: str) -> int:
    return int(account.headers[f"x-ratelimit-remaining-{kind}"])


def test_requests_flow_back_evenly(account: Callable[..., Account], clock: Clock) -> None:
    ada = account(requests=3)
    for left in (2, 1, 0):
        ada.request()
        assert remaining(ada, "requests") == left
    assert ada.headers["x-ratelimit-reset-requests"] == "1m0s"
    refused = refusal(ada.request)
    assert refused.retry_after_s == 20
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("20", "20000")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 19.9
    assert refusal(ada.request).retry_after_s == pytest.approx(0.1)
    clock.now += 0.2
    ada.request()
    clock.now += 3600
    assert remaining(ada, "requests") == 3


def test_who_waits_as_told_is_not_told_to_wait_again(account: Callable[..., Account], clock: Clock) -> None:
    for limit in (1, 3, 7, 59, 61, 997):
        ada = account(requests=limit)
        for _ in range(limit):
            ada.request()
        for _ in range(20):
            clock.now += int(refusal(ada.request).headers["retry-after-ms"]) / 1000
            ada.request()


def test_tokens_are_charged_as_foreseen_and_set_right_at_the_end(account: Callable[..., Account], clock: Clock) -> None:
    ada = account(tokens=100)
    with ada.spending(60) as spending:
        assert remaining(ada, "tokens") == 40
        assert refusal(lambda: spend(ada, 41, 0)).retry_after_s == pytest.approx(0.6)
        spending.tokens = 10
    assert remaining(ada, "tokens") == 90
    spend(ada, 5, 150)  # an answer without a limit
    assert remaining(ada, "tokens") == 0
    assert refusal(lambda: spend(ada, 1, 0)).retry_after_s == pytest.approx(36.6)
    clock.now += 36.7
    spend(ada, 1, 1)


def test_a_request_that_can_never_fit_is_not_to_be_tried_again(account: Callable[..., Account]) -> None:
    refused = refusal(lambda: spend(account(tokens=100), 101, 0))
    assert "Request too large" in refused.message
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


def test_so_many_run_at_once_and_a_failure_makes_room_too(account: Callable[..., Account]) -> None:
    ada = account(concurrency=2)
    with ada.spending(1), ada.spending(1):
        assert refusal(ada.request).retry_after_s == 1
        assert refusal(lambda: spend(ada, 1, 1)).retry_after_s == 1
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), ada.spending(1):
            _ = 1 / 0
    spend(ada, 1, 1)
    assert ada.headers == {}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0ms"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (360.5, "6m0.5s")],
)
def test_durations_read_as_openais(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.fixture
def served(serve):
    return serve(api_keys=KEYS, quota=Quota(requests=2, tokens=1000))


def test_every_answer_tells_what_is_left_and_one_key_takes_nothing_from_another(served):
    for stream, left in ((False, "1"), (True, "0")):
        answer = served.http.post("/v1/completions", json=PROMPT | {"stream": stream, "max_tokens": 8}, headers=ONE)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == left
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
        assert 970 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    refused = served.http.post("/v1/chat/completions", json={"messages": [], "stream": True}, headers=ONE)
    assert refused.status_code == 400, "what is no request is none"
    refused = served.http.post("/v1/completions", json=PROMPT | {"stream": True}, headers=ONE)
    assert (refused.status_code, refused.headers["content-type"]) == (429, "application/json")
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert served.http.post("/v1/completions", json=PROMPT, headers=TWO).status_code == 200
    assert served.http.post("/tokenize", json=PROMPT, headers=ONE).status_code == 200


def test_tokens_are_set_right_when_an_answer_has_ended_or_was_cut_off(serve):
    served = serve(api_keys=KEYS, quota=Quota(tokens=100_000), open_metrics=True)
    left: list[int] = []
    for max_tokens in (500, 500, 1):
        answer = served.http.post("/v1/completions", json=PROMPT | {"max_tokens": max_tokens}, headers=ONE)
        left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
        served.wait_for('headrace_requests_finished_total{reason="stop"}', min(len(left), 2))
    assert left[0] - left[1] < 50
    served.engine.is_held = True
    with served.send("/v1/completions", b'{"prompt": "Hi", "max_tokens": 500}', "Authorization: Bearer two"):
        served.engine.wait_until(lambda: served.engine.orders[3:])
    served.engine.wait_until(lambda: served.engine.cancelled)
    served.engine.is_held = False
    answer = served.http.post("/v1/completions", json=PROMPT | {"max_tokens": 1}, headers=TWO)
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 99_900


def test_a_key_runs_so_many_requests_at_once(serve):
    served = serve(api_keys=KEYS, quota=Quota(concurrency=1))
    served.engine.is_held = True
    with served.send("/v1/completions", b'{"prompt": "Hi"}', "Authorization: Bearer one"):
        served.engine.wait_until(lambda: served.engine.orders)
        refused = served.http.post("/v1/completions", json=PROMPT, headers=ONE)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    served.engine.wait_until(lambda: served.engine.cancelled)
    served.engine.is_held = False
    wait_until(lambda: served.http.post("/v1/completions", json=PROMPT, headers=ONE).status_code == 200)


def test_no_key_is_in_metrics_or_logs_but_its_name(serve, tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text("ada: very-secret\n")
    served = serve(api_key_file=file, open_metrics=True)
    caplog.set_level("INFO")
    assert served.http.post("/v1/completions", json=PROMPT, headers={"x-api-key": "very-secret"}).status_code == 200
    served.wait_for('headrace_key_requests_total{key="ada"}', 1)
    assert served.gained('headrace_key_tokens_total{key="ada"}') == len("Hi") + len("Hello, world!") + 1
    metrics = served.http.get("/metrics").text
    named = [record.values for record in caplog.records if record.message == "request"]
    assert [values["key"] for values in named if values["path"] == "/v1/completions"] == ["ada"]
    assert "very-secret" not in metrics + caplog.text + str(named)


def test_openais_client_waits_as_told_and_asks_again(serve, monkeypatch, clock):
    monkeypatch.setattr(keys, "Account", partial(Account, clock=clock))
    served = serve(api_keys=KEYS, quota=Quota(requests=3), open_metrics=True)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr("time.sleep", sleep)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="one", max_retries=2) as client:
        for _ in range(5):
            answer = client.completions.create(model="bytes", prompt="Hi")
            assert answer.choices[0].text == "Hello, world!"
        assert waits == [20, 20]
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).completions.create(model="bytes", prompt="Hi")
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "3"
    assert served.gained('headrace_requests_rejected_total{reason="rate_limit_exceeded"}') == 3
