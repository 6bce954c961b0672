"""The relations that "exact" means, M01 to M20: two ways to ask for the same thing get the same answer, bit for bit.

On the default path: the engine's own loop, scheduler, runner and C++ kernels, in this process, on a tiny model of every
family; for what is a matter of text or HTTP, the API over an engine process. Greedy and drawn requests, with penalties,
bias, truncation and drafts, are compared by token ids and by log probabilities as the floats they are. Freed blocks
hold NaN. `test_planted_faults.py` shows that each of these can fail.

M12 in all its forms is in tests/model/test_sampling.py, M13 with engine processes that are killed in
tests/engine/test_resuming.py and tests/end_to_end/test_recovery.py, M20 at its full size in tests/soak.
"""

import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from copying_model import PERIOD, ids
from in_process import Answer, Events, Model, Setting
from llguidance import LLMatcher
from scipy import stats
from serving import Body, Served
from support import CHAT_TEMPLATE, byte_tokenizer

from model.batch import Batch, Chunk, Sample, Sampling
from model.inputs import pack
from model.kernels import Kernels
from model.sampling import choose
from server.engine.constraint import Constraint
from server.engine.journal import Journal
from server.engine.messages import Delta, Submit
from server.engine.streams import Order, TokenStream

BLOCK = 16
TOKENS = 8
VOCABULARY = 96  # of every tiny model
SHARED = [(11 * place) % VOCABULARY for place in range(2 * BLOCK)]
GREEDY = Sampling(temperature=0.0, top_logprobs=2)
DRAWN = Sampling(seed=5, top_logprobs=2)
END = VOCABULARY - 1  # where a grammar may end; the other tokens are ASCII's printable characters
WORDS = LLMatcher.grammar_from_json_schema(  # long stretches of it are forced, and drafts come of those
    {"type": "array", "minItems": 8, "items": {"enum": ["perhaps", "possibly", "never"]}},
    overrides={"whitespace_pattern": " ?"},
)
NUMBERS = LLMatcher.grammar_from_regex(r"(-?[1-9][0-9]{0,4}(\.[0-9]+)?, )*(0|1)")
BOUND = [
    Sampling(seed=10, grammar=WORDS, ending_ids=(END,), top_logprobs=2),
    Sampling(temperature=0.0, grammar=NUMBERS, ending_ids=(END,), bad_words=((17,), (18, 19)), top_logprobs=2),
    Sampling(seed=11, allowed_token_ids=tuple(range(40, 60)), bad_words=((41, 42), (50,)), top_logprobs=2),
]
SAMPLINGS = [
    *BOUND,
    GREEDY,
    DRAWN,
    Sampling(seed=9, logit_bias={1: 50.0, 2: 50.0, 3: 50.0}, top_logprobs=2),  # so few words that drafts come and fail
    Sampling(temperature=0.8, seed=6, top_p=0.9, top_k=20, min_p=0.02, top_logprobs=2),
    Sampling(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.9, top_logprobs=2),
    Sampling(seed=7, repetition_penalty=1.5, logit_bias={7: 4.0, 8: -100.0}, top_logprobs=2),
    Sampling(seed=8, min_tokens=5, ending_ids=tuple(range(0, VOCABULARY, 4)), top_logprobs=2),
]


def prompt_of(place: int, length: int) -> list[int]:
    """No two alike, one in three a repetition that drafts come of."""
    draw = random.Random(place)
    period = 5 if place % 3 == 0 else length
    return [draw.randrange(VOCABULARY) for _ in range(period)] * (length // period) or [place]


def orders(count: int = 32, max_tokens: int = TOKENS) -> list[Order]:
    """Of all kinds and lengths up to three blocks; one in four begins as others do."""
    made = []
    for place in range(count):
        prompt = prompt_of(place, 1 + 7 * place % 45)
        sampling = replace(SAMPLINGS[place % len(SAMPLINGS)], seed=place)
        prompt = [*SHARED, *prompt[:9]] if place % 4 == 1 else prompt
        made.append(Order(prompt, max_tokens, list(sampling.ending_ids), sampling))
    return made


def test_m01_a_batch_of_any_size_says_what_each_of_it_says_alone(model: Model) -> None:
    everyone = orders()
    alone = model.alone(everyone)
    for size in (2, 8, 32):
        for start in range(0, len(everyone), max(size, 8)):
            assert model.run(everyone[start : start + size]) == alone[start : start + size]


def test_m02_place_in_the_batch_and_order_of_arrival_do_not_matter(model: Model) -> None:
    everyone = orders()
    alone = model.alone(everyone)
    for seed in range(3):
        draw = random.Random(seed)
        places = draw.sample(range(len(everyone)), len(everyone))
        arrivals = [draw.randrange(20 * seed + 1) for _ in places]
        answers = model.run([everyone[place] for place in places], events=Events(arrivals=arrivals))
        assert answers == [alone[place] for place in places]


def test_m03_a_preempted_sequence_says_the_same(model: Model) -> None:
    """Either would fill the pool before its end, so that the younger one has to give way."""
    elder = Order(prompt_of(9, 14), 34, [], GREEDY)
    for place, sampling in enumerate(SAMPLINGS[len(BOUND) : len(BOUND) + 6]):  # those that are long enough
        pair = [elder, Order(prompt_of(place, 14), 34, [], sampling)]
        answers = model.run(pair, Setting(blocks=3))
        assert model.preempted == {1}
        assert answers == model.alone(pair)


def test_m04_a_prefix_from_the_cache_is_the_prefix_computed(model: Model) -> None:
    """Cut at every place of a block; from a sequence that has ended, that decodes, that is being prefilled."""
    base = Order(SHARED, TOKENS, [], GREEDY)
    cuts = [Order([*SHARED[:cut], cut, 1, 2], TOKENS, [], SAMPLINGS[cut % 6]) for cut in range(BLOCK, 2 * BLOCK + 1)]
    everyone = [base, *cuts, base]
    alone = model.alone(everyone)
    for later, step_tokens in ((1000, 512), (4, 512), (0, 512), (0, 24)):
        arrivals = [0, *[later] * len(cuts), 2 * later]
        answers = model.run(everyone, Setting(step_tokens=step_tokens), Events(arrivals=arrivals))
        assert answers == alone
        assert [answer.cached_tokens for answer in answers] == [0, *[BLOCK] * BLOCK, 2 * BLOCK, BLOCK]


def test_m04_a_prefix_that_was_evicted_is_computed_again(model: Model) -> None:
    """A long answer takes the blocks of what is cached, the end of it first; then everything is asked once more."""
    base, longer = Order(SHARED, TOKENS, [], GREEDY), Order([*SHARED, 1, 2, 3], TOKENS, [], DRAWN)
    flood = Order(prompt_of(1, 40), 40, [], DRAWN)
    everyone = [base, longer, flood, base, longer]
    answers = model.run(everyone, Setting(blocks=5), Events(arrivals=[1000 * place for place in range(5)]))
    assert answers == model.alone(everyone)
    assert answers[1].cached_tokens == 2 * BLOCK
    assert answers[3].cached_tokens == 0


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_m04_a_second_turn_finds_what_was_computed_of_the_first(model: Model, length: int) -> None:
    """The last token of an answer is never computed, also where it would fill a block."""
    first = Order(SHARED, length, [], GREEDY)
    (answer,) = model.alone([first])
    second = Order([*SHARED, *answer.tokens, 1, 2], TOKENS, [], GREEDY)
    answers = model.run([first, second], events=Events(arrivals=[0, 1000]))
    assert answers == model.alone([first, second])
    assert answers[1].cached_tokens == (len(SHARED) + length - 1) // BLOCK * BLOCK


def test_m05_however_a_prompt_is_chunked(model: Model) -> None:
    everyone = orders(7)
    alone = model.alone(everyone)
    for step_tokens in (1, 7, BLOCK - 1, BLOCK, BLOCK + 1):
        assert model.run(everyone, Setting(step_tokens=step_tokens)) == alone


def test_m08_a_shorter_limit_cuts_the_answer_and_says_so(model: Model) -> None:
    free = [order for order in orders(12, max_tokens=10) if not order.ending_ids]
    ending = replace(free[1], ending_ids=list(range(0, VOCABULARY, 5)))
    for order, answer in zip([*free, ending], model.alone([*free, ending]), strict=True):
        shorter = model.run([replace(order, max_tokens=limit) for limit in range(1, order.max_tokens + 1)])
        for limit, cut in enumerate(shorter, 1):
            assert cut.tokens == answer.tokens[:limit]
            assert cut.logprobs == answer.logprobs[:limit]
            is_whole = answer.finish == "stop" and limit >= len(answer.tokens)
            assert cut.finish == ("stop" if is_whole else "length")


def test_m08_a_lower_limit_keeps_the_answer_from_ending(model: Model) -> None:
    """And changes no token below the lower of two such limits."""
    endings = tuple(range(0, VOCABULARY, 2))
    floors = range(8)
    sampling = [replace(DRAWN, ending_ids=endings, min_tokens=floor) for floor in floors]
    answers = model.run([Order(prompt_of(2, 20), 40, list(endings), each) for each in sampling])
    for floor, answer in zip(floors, answers, strict=True):
        assert answer.finish == "stop"
        assert len(answer.tokens) > floor
        assert not set(answer.tokens[:-1]) & set(endings)
    for floor in floors[:-1]:
        assert answers[floor].tokens[:floor] == answers[floor + 1].tokens[:floor]


def test_m10_a_bias_forbids_forces_or_changes_nothing(model: Model) -> None:
    prompt = prompt_of(4, 20)
    ways: dict[str, Sampling] = {}
    for name, sampling in (("greedy", GREEDY), ("drawn", DRAWN)):
        ways[name] = sampling
        ways[f"{name}, no bias"] = replace(sampling, logit_bias=dict.fromkeys(range(0, VOCABULARY, 3), 0.0))
        ways[f"{name}, all alike"] = replace(sampling, logit_bias=dict.fromkeys(range(VOCABULARY), 2.0))
    (greedy,) = model.alone([Order(prompt, TOKENS, [], GREEDY)])
    favourite = greedy.tokens[0]
    ways["forbidden"] = replace(GREEDY, logit_bias={favourite: -100.0})
    ways["forced"] = replace(DRAWN, logit_bias={favourite: 100.0})
    orders = [Order(prompt, TOKENS, [], sampling) for sampling in ways.values()]
    told = dict(zip(ways, model.run(orders, events=Events(arrivals=range(0, 20 * len(orders), 20))), strict=True))
    for name in ("greedy", "drawn"):
        assert told[f"{name}, no bias"] == told[name]
        assert told[f"{name}, all alike"] == told[name]
    assert favourite not in told["forbidden"].tokens
    assert told["forced"].tokens == [favourite] * TOKENS


def test_m11_the_limits_of_every_sampler(model: Model) -> None:
    prompt = prompt_of(5, 20)
    greedy_ways = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}, {"min_p": 1.0}]
    plain_ways: list[dict[str, Any]] = [{}, {"top_k": VOCABULARY}, {"top_k": 10**6}, {"top_p": 1.0}, {"min_p": 0.0}]
    plain_ways += [{"repetition_penalty": 1.0}, {"presence_penalty": 0.0}, {"min_tokens": 5}]
    for ways in (greedy_ways, plain_ways):
        first, *others = model.run([Order(prompt, TOKENS, [], replace(DRAWN, **way)) for way in ways])
        assert others == [first] * len(others)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.5, top_p=0.95), Sampling(top_k=5), Sampling(temperature=2.0, min_p=0.2)],
    ids=["0.5", "1", "2"],
)
@torch.inference_mode()
def test_m12_draws_follow_the_distribution_and_stay_within_the_mask(sampling: Sampling) -> None:
    kernels = Kernels(torch.device("cpu"), torch.float32)
    draws, logits = 20_000, torch.tensor([1.2, -0.7, 2.1, 0.4, 2.0, -1.9, 0.9, 1.6])
    counts = np.zeros(len(logits))
    for position in range(draws):
        sample = choose(logits, 2, Chunk([], 0, position, [], 0, sampling), None, kernels)
        assert isinstance(sample, Sample)
        counts[sample.token] += 1
    weights = np.exp(logits.double().numpy() / sampling.temperature)
    order = np.argsort(-weights)
    before = np.concatenate(([0.0], weights[order].cumsum()[:-1])) / weights.sum()
    weights[order[before >= sampling.top_p]] = 0
    weights[order[sampling.top_k or len(order) :]] = 0
    weights[weights < sampling.min_p * weights.max()] = 0
    mask = weights > 0
    assert mask.sum() < len(weights)
    assert not counts[~mask].any()
    assert stats.chisquare(counts[mask], weights[mask] / weights.sum() * draws).pvalue > 1e-4


def test_m13_an_engine_that_dies_after_any_token_changes_nothing(model: Model) -> None:
    """What the journal knows after token k, for each k, goes on in an engine that knows nothing."""
    endings = tuple(range(0, VOCABULARY, 3))
    kinds = [GREEDY, replace(DRAWN, presence_penalty=0.5, frequency_penalty=0.3, min_tokens=30, ending_ids=endings)]
    everyone = [Order(prompt_of(6, 20), 34, list(kind.ending_ids), kind) for kind in kinds]
    for order, answer in zip(everyone, model.alone(everyone), strict=True):
        depths = range(1, min(33, len(answer.tokens)))
        assert len(depths) >= 30
        journal = Journal()
        for depth in depths:
            journal.add(order, TokenStream(depth, lambda id: None))
        for depth, entry in zip(depths, journal.due(), strict=True):
            assert entry.run is not None
            journal.record(Delta(entry.run, answer.tokens[:depth], answer.logprobs[:depth], None, 5))
        assert not journal.lose_engine()
        resumed = model.run([entry.submit() for entry in journal.due()])
        assert [each.cached_tokens for each in resumed] == [5] * len(depths)
        for depth, rest in zip(depths, resumed, strict=True):
            assert rest == Answer(answer.tokens[depth:], answer.logprobs[depth:], answer.finish, 0)


def test_m13_a_grammar_goes_on_in_another_engine_where_it_was(model: Model) -> None:
    everyone = [Order(prompt_of(7, 20), 40, [END], kind) for kind in BOUND[:2]]
    for order, answer in zip(everyone, model.alone(everyone), strict=True):
        assert order.sampling.grammar != WORDS or len(answer.tokens) > 30
        outputs = [answer.tokens[:depth] for depth in range(1, len(answer.tokens))]
        ways = [Submit(0, order.prompt, 40, [END], order.sampling, output) for output in outputs]
        for depth, rest in enumerate(model.run(ways), 1):
            assert rest == Answer(answer.tokens[depth:], answer.logprobs[depth:], answer.finish, 0)


def test_m14_what_befalls_a_neighbour_befalls_nobody_else(model: Model) -> None:
    """It leaves, its logits are not finite, computing it raises, others arrive; then its prompt is asked again."""
    victim = Order(prompt_of(101, 40), 30, [], GREEDY)
    others = orders(15)
    alone = model.alone([*others, victim])
    again = [*others, victim, victim]
    arrivals = [*(place % 8 for place in range(len(others))), 0, 1000]

    def befallen(batch: Batch) -> list[Chunk]:
        return [
            chunk
            for chunk in batch.chunks
            if chunk.tokens[: len(victim.prompt)] == victim.prompt and len(chunk.tokens) == len(victim.prompt) + 3
        ]

    def poison(batch: Batch) -> None:
        for chunk in befallen(batch):
            if not poisoned:
                poisoned.append(chunk)
                model.runner.cache.poison(chunk.blocks)

    def explode(batch: Batch) -> None:
        if befallen(batch) and len(raised) < 2:  # in the batch, and alone
            raised.append(batch)
            raise RuntimeError("as the test wants it")

    poisoned: list[Chunk] = []
    raised: list[Batch] = []
    for events, end in (
        (Events(arrivals=arrivals, departures={len(others): 4}), None),
        (Events(arrivals=arrivals, before=poison), "error"),
        (Events(arrivals=arrivals, before=explode), "error"),
    ):
        *answers, last = model.run(again, events=events)
        assert answers[-1].finish == end
        assert answers[:-1] == alone[:-1]
        assert last == alone[-1]


def test_m14_a_mask_that_is_late_keeps_nobody_waiting_and_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = orders(12)
    alone = model.alone(everyone)
    compute, wait = Constraint._compute, Constraint._wait
    late: list[bool] = []

    def compute_slowly(self: Constraint, drafts: tuple[int, ...]) -> list[bytes]:
        time.sleep(0.005)
        return compute(self, drafts)

    def wait_never(self: Constraint, deadline: float, rows: int) -> list[bytes] | None:
        masks = wait(self, 0.0, rows)
        late.append(masks is None)
        return masks

    monkeypatch.setattr(Constraint, "_compute", compute_slowly)
    monkeypatch.setattr(Constraint, "_wait", wait_never)
    assert model.run(everyone) == alone
    assert model.run(everyone[:1]) == alone[:1]
    assert any(late)
    assert not all(late)


@torch.inference_mode()
def test_m15_logprobs_are_the_models_own_and_those_of_the_text_as_a_prompt(model: Model) -> None:
    for order in orders(7):
        everything = replace(order, sampling=replace(order.sampling, top_logprobs=VOCABULARY))
        (answer,) = model.alone([everything])
        text = [*order.prompt, *answer.tokens]
        model.runner.cache.poison(list(range(8)))
        inputs = pack(Batch([Chunk(text, 0, len(text), list(range(8)), len(text), None)]), torch.device("cpu"))
        hidden = model.runner.transformer(inputs, model.runner.cache)
        rows = model.runner.transformer.logits(hidden[len(order.prompt) - 1 : -1])
        for row, token, logprobs in zip(rows, answer.tokens, answer.logprobs, strict=True):
            assert logprobs.chosen == float(torch.log_softmax(row, -1)[token])
            assert dict(logprobs.top)[token] == logprobs.chosen
            assert sum(np.exp([logprob for _, logprob in logprobs.top])) == pytest.approx(1.0, abs=1e-5)
        for few in model.run([order])[0].logprobs:
            assert few.chosen in [logprob for _, logprob in few.top] or few.chosen <= few.top[-1][1]


def test_m20_one_request_under_changing_load_has_one_answer(model: Model) -> None:
    order = Order(prompt_of(8, 30), TOKENS, [], GREEDY)
    draw = random.Random(0)
    load = orders(24)
    arrivals = [draw.randrange(60) for _ in range(40 + len(load))]
    answers = model.run([*[order] * 40, *load], Setting(blocks=40), Events(arrivals=arrivals))
    assert answers[:40] == model.alone([order]) * 40


def period(text: str) -> list[int]:
    """A prompt that the copying model repeats: these bytes, and dots up to a period."""
    return ids(text + "." * (PERIOD - len(text.encode())))


PLANES = ["".join(chr(plane << 16 | 0x1234) for plane in planes) for planes in (range(8), range(8, 17))]
TEXTS = [
    *PLANES,
    "family 👩‍👩‍👧‍👦, flag \U0001f1eb\U0001f1f7",
    "e\u0301a\u0323\u0302 and क्षि, नी",
    "naïve 漢字 \U000e0041\u200d",
]


@pytest.mark.parametrize("text", TEXTS, ids=["planes 0-7", "planes 8-16", "joined", "combining", "mixed"])
def test_m06_a_stream_adds_up_to_the_unstreamed_text(served: Served, text: str) -> None:
    """One token a byte: every code point arrives in parts, and a limit may cut the answer within one."""
    prompt = period(text)
    size = len(text.encode())
    for limit in (*range(size - 5, size + 1), 2 * PERIOD):
        body = {"prompt": prompt, "temperature": 0, "max_tokens": limit}
        (whole,) = served.complete(**body)["choices"]
        said = (text + "." * (PERIOD - size)).encode() * 2
        assert whole["text"] == said[:limit].decode(errors="replace")
        deltas = [choice["text"] for event in served.stream(**body) for choice in event["choices"]]
        assert "".join(deltas) == whole["text"]
        assert "\ufffd" not in "".join(deltas)[:-1]


def drawn(**body: Any) -> Body:
    """At temperature 2 the copying model errs in one answer of three or so, so that seeds tell."""
    return {"prompt": period("What will it be?"), "temperature": 2, "max_tokens": 24, "logprobs": 2} | body


def test_m07_choice_i_is_the_request_with_seed_plus_i(served: Served) -> None:
    def choices(**body: Any) -> list[Body]:
        return [choice | {"index": 0} for choice in served.complete(**drawn(**body))["choices"]]

    four = choices(seed=40, n=4)
    assert four == [choices(seed=40 + place)[0] for place in range(4)]
    assert choices(seed=40, n=2) == four[:2]
    assert len({choice["text"] for choice in four}) > 1


def test_m09_a_stop_string_cuts_the_answer_and_nothing_of_it_was_ever_streamed(served: Served) -> None:
    """Strings over many tokens, overlapping themselves, of several bytes a character, half there at the end."""
    text = "abababac aabaabaaab 漢漢字 the end"
    body: Body = {"prompt": period(text), "temperature": 0, "max_tokens": PERIOD}
    (free,) = served.complete(**body)["choices"]
    assert free["text"].startswith(text)
    for stop in ("c", "ababac", "aabaaab", "漢字", " the ", "aaaa", "end.....", "." * 60, ["字", "baab"]):
        strings = [stop] if isinstance(stop, str) else stop
        found = [place for place in map(free["text"].find, strings) if place >= 0]
        want = free["text"][: min(found)] if found else free["text"]
        (whole,) = served.complete(**body, stop=stop)["choices"]
        assert (whole["text"], whole["finish_reason"]) == (want, "stop" if found else "length")
        deltas = [choice["text"] for event in served.stream(**body, stop=stop) for choice in event["choices"]]
        assert "".join(deltas) == want


CHAT = [{"role": "user", "content": "Who goes there?"}]
RENDERED = "<|start|>user\nWho goes there?<|end|><|start|>assistant\n"
WAYS: list[Body] = [{"temperature": 0}, {"temperature": 2, "seed": 3}]


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "drawn"])
def test_m16_ids_and_text_are_the_same_prompt_and_counted_alike(served: Served, way: Body) -> None:
    for text in (RENDERED, "plain text, naïve 漢字"):
        tokens = byte_tokenizer().encode(text).ids
        assert served.post("/tokenize", prompt=text)["tokens"] == tokens
        answers = [served.complete(prompt=prompt, max_tokens=20, **way) for prompt in (text, tokens, [tokens])]
        assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]
        assert {answer["usage"]["prompt_tokens"] for answer in answers} == {len(tokens)}


def test_m17_a_salt_changes_what_is_found_in_the_cache_and_nothing_else(model: Model) -> None:
    """Of a prompt that all have, one after the other, beside each other, and after an engine's end."""
    base = Order([*SHARED, 1, 2, 3], TOKENS, [], DRAWN)
    salts = ["", "mine", "yours", "mine", "", "yours" * 9]
    everyone = [replace(base, salt=salt) for salt in salts]
    alone = model.alone([base]) * len(salts)
    found = [0, 0, 0, 2 * BLOCK, 2 * BLOCK, 0]
    for pace in (1000, 0):
        answers = model.run(everyone, events=Events(arrivals=[pace * place for place in range(len(salts))]))
        assert answers == alone
        assert [answer.cached_tokens for answer in answers] == found
    journal = Journal()
    for place, order in enumerate(everyone):
        journal.add(order, TokenStream(place, lambda id: None))
    answers = model.run([entry.submit() for entry in journal.due()])
    assert answers == alone
    assert [answer.cached_tokens for answer in answers] == found


def test_m17_requests_have_the_salt_they_name(served: Served) -> None:
    body: Body = {"prompt": period("salted"), "temperature": 0, "max_tokens": 4}
    answers = [served.complete(**body, **({"cache_salt": salt} if salt else {})) for salt in ("", "a", "b", "a")]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    hits = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert hits[:3] == [0, 0, 0]
    assert hits[3] > 0
    chat = {"messages": [{"role": "user", "content": "salted " * 9}], "max_tokens": 4}
    hits = []
    for salt in ("a", "b", "a"):
        usage = served.post("/v1/chat/completions", **chat, cache_salt=salt)["usage"]
        hits.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert hits[:2] == [0, 0]
    assert hits[2] > 0


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "drawn"])
def test_m18_a_chat_is_the_completion_of_its_rendered_template(served: Served, way: Body) -> None:
    assert CHAT_TEMPLATE.count("<|start|>") == 2, "the template was rendered by hand above"
    chat = served.post("/v1/chat/completions", messages=CHAT, max_tokens=20, ignore_eos=True, **way)
    completion = served.complete(prompt=RENDERED, max_tokens=20, **way)
    assert chat["choices"][0]["message"]["content"] == completion["choices"][0]["text"]
    for usage in (chat["usage"], completion["usage"]):
        usage.pop("prompt_tokens_details")  # the second one finds the first one's blocks
    assert chat["usage"] == completion["usage"]


def test_m19_another_process_says_the_same(served: Served) -> None:
    bodies = [drawn(seed=seed) for seed in range(16)] + [drawn(temperature=0)]  # of 4, all may be the text itself
    before = [served.complete(**body)["choices"] for body in bodies]
    served.replace_engine()
    assert [served.complete(**body)["choices"] for body in bodies] == before
