"""Figures follow from event times by arithmetic that a person can redo."""

import math
import random

import numpy as np
import pytest

from server.bench.measure import Plateau, Slo, Spread, figures, percentile
from server.bench.record import Failure, Record, Usage


def record(start: float, chunks: list[float], tokens: int | None = None, prompt: int = 10, asked: int = 4) -> Record:
    usage = None if tokens is None else Usage(prompt, tokens)
    return Record(start=start, asked_tokens=asked, chunks=chunks, finish=chunks[-1], usage=usage)


def test_the_latencies_of_one_request() -> None:
    one = record(100.0, [100.5, 100.75, 101.5], tokens=3)
    assert (one.ttft, one.e2e, one.tpot) == (0.5, 1.5, 0.5)
    assert one.gaps == [0.25, 0.75]


def test_tokens_are_counted_by_usage_and_only_without_it_by_chunks() -> None:
    assert record(0.0, [1.0, 2.0], tokens=5).tpot == 0.25
    assert record(0.0, [1.0, 2.0]).tpot == 1.0


def test_a_single_token_has_no_time_per_further_token() -> None:
    assert record(0.0, [1.0], tokens=1).tpot is None


def test_an_answer_without_text_ends_and_begins_with_its_finish_reason() -> None:
    silent = Record(start=1.0, asked_tokens=1, finish=3.0, usage=Usage(5, 1))
    assert (silent.ttft, silent.e2e, silent.gaps) == (2.0, 2.0, [])


def test_a_finish_reason_after_the_last_text_ends_the_answer_but_is_no_token() -> None:
    late = Record(start=0.0, asked_tokens=2, chunks=[1.0, 2.0], finish=2.5, usage=Usage(5, 2))
    assert (late.e2e, late.tpot, late.gaps) == (2.5, 1.5, [1.0])


def test_throughput_is_over_first_start_to_last_end() -> None:
    f = figures([record(0.0, [1.0, 2.0], tokens=4), record(1.0, [2.0, 4.0], tokens=4)], client_cpu=0.25)
    assert (f.seconds, f.output_tokens, f.prompt_tokens) == (4.0, 8, 20)
    assert (f.output_tokens_per_s, f.total_tokens_per_s, f.requests_per_s) == (2.0, 7.0, 0.5)
    assert f.client_cpu == 0.25


def test_the_plateau_counts_only_what_came_between_first_end_and_last_start() -> None:
    early = record(0.0, [1.0, 2.0], tokens=2)
    middle = record(0.0, [1.0, 3.0, 5.0, 9.0], tokens=8)  # two tokens a chunk; the chunks at 3 and 5 are inside
    late = record(6.0, [7.0, 8.0], tokens=2)
    inner = record(2.5, [4.0, 7.0], tokens=2)  # its prompt was computed inside, one of its tokens after
    # inside [2, 6): 1 token of the first (at 2.0), 4 of the second, 1 of the last; 10 prompt tokens
    assert figures([early, middle, late, inner], 0.0).plateau == Plateau(4.0, 6 / 4, 16 / 4)


def test_there_is_no_plateau_where_all_started_before_the_first_end() -> None:
    assert figures([record(0.0, [1.0]), record(0.5, [2.0])], 0.0).plateau is None


def test_two_waves_in_step_have_no_plateau_but_four_have() -> None:
    waves = [record(1.0 * wave, [wave + 0.5, wave + 1.0], tokens=2) for wave in range(4) for _ in range(3)]
    assert figures(waves[:6], 0.0).plateau is None  # its window would be an instant with a burst of tokens in it
    assert figures(waves, 0.0).plateau == Plateau(2.0, 12 / 2, (12 + 2 * 3 * 10) / 2)


def test_failed_requests_are_counted_by_kind_and_kept_out_of_every_figure() -> None:
    bad = [
        Record(start=0.0, asked_tokens=1, chunks=[50.0], failure=Failure("cut", "first")),
        Record(start=0.0, asked_tokens=1, failure=Failure("cut", "second")),
        Record(start=0.0, asked_tokens=1, failure=Failure("http 503", "full")),
    ]
    f = figures([*bad, record(0.0, [1.0, 2.0], tokens=4)], 0.0)
    assert f.errors == {"cut": 2, "http 503": 1}
    assert f.error_examples == {"cut": "first", "http 503": "full"}
    assert (f.answered, f.failed, f.output_tokens, f.seconds) == (1, 3, 4, 2.0)
    assert f.ttft == Spread(1.0, 1.0, 1.0, 1.0, 1.0)


def test_nothing_answered_gives_empty_figures_and_no_division_by_zero() -> None:
    refused = Record(start=3.0, asked_tokens=1, failure=Failure("refused", ""))
    assert figures([], 0.0).answered == 0  # a low rate may have no arrival at all
    f = figures([refused], 0.0, Slo(ttft=1.0))
    assert (f.ttft, f.plateau, f.seconds, f.output_tokens_per_s, f.good_requests_per_s) == (None, None, 0.0, 0.0, 0.0)


def test_goodput_counts_the_requests_that_meet_every_limit() -> None:
    fast, slow_start, slow_tokens = (
        record(0.0, [0.4, 1.0], tokens=2),
        record(0.0, [0.6, 1.0], tokens=2),
        record(0.0, [0.4, 2.0], tokens=2),
    )
    f = figures([fast, slow_start, slow_tokens], 0.0, Slo.parse("ttft=0.5,tpot=0.75"))
    assert f.good_requests_per_s == 1 / 2.0
    assert figures([fast], 0.0).good_requests_per_s is None


def test_usage_and_chunks_are_checked_against_each_other() -> None:
    f = figures(
        [
            record(0.0, [1.0, 2.0, 3.0], tokens=2, asked=2),  # more chunks than tokens
            record(0.0, [1.0, 2.0], tokens=3, asked=4),  # shorter than asked
            record(0.0, [1.0, 2.0], asked=2),  # no usage
        ],
        0.0,
    )
    assert (f.chunks, f.impossible_counts, f.short_answers, f.without_usage) == (7, 1, 1, 1)


def test_cached_tokens_are_told_apart_from_silence() -> None:
    silent, telling = record(0.0, [1.0], tokens=1), record(0.0, [1.0], tokens=1)
    telling.usage = Usage(10, 1, cached=8)
    assert figures([silent], 0.0).cached_tokens is None
    assert figures([silent, telling], 0.0).cached_tokens == 8


def test_lateness_is_the_clients_own_delay() -> None:
    late = [Record(start=1.0 + delay, due=1.0, asked_tokens=1, chunks=[5.0]) for delay in (0.0, 0.5)]
    assert figures(late, 0.0).lateness_p99 == pytest.approx(0.495)
    assert figures([record(0.0, [1.0])], 0.0).lateness_p99 is None


def test_percentiles_are_those_of_numpy() -> None:
    rng = random.Random(1)
    for size in (1, 2, 3, 10, 101):
        values = sorted(rng.expovariate(1.0) for _ in range(size))
        for percent in (0, 50, 90, 95, 99, 100):
            assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_a_spread_does_not_depend_on_the_order() -> None:
    values = [0.1 * number for number in range(50)]
    shuffled = random.Random(2).sample(values, len(values))
    assert Spread.of(shuffled) == Spread.of(values)
    assert Spread.of([]) is None


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=fast", "speed=1", "ttft=1,ttft=2", "ttft=0", "tpot=nan"])
def test_a_wrong_slo_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=text.split(",")[-1] or "''"):
        Slo.parse(text)


def test_an_infinite_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="e2e=inf"):
        Slo.parse(f"e2e={math.inf}")
