"""Whether a step that is replayed has the bits of the one that is told to the device operation by operation.

By interpretation a capture is faked: it writes down what is computed and does it again. On a card it is a CUDA graph.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_streams import FakeStreams, HostSync
from random_weights import RandomWeights

from model.batch import Batch, Chunk, Sample, Sampling, StepResult
from model.config import Experts, ModelConfig, Rope
from model.kernels.reference import Span
from model.kernels.triton import TritonKernels
from model.kernels.triton.graphs import Graphs, Size
from model.kernels.triton.layout import Layout, lay_out
from model.kv_cache import KVCache
from model.runner import Runner
from model.transformer import Transformer

PLAIN = ModelConfig(
    family="llama",
    vocab_size=32,
    dim=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    hidden_dim=32,
    context_length=64,
)
LONG = replace(PLAIN, family="long", context_length=1100)
WINDOWED = replace(PLAIN, family="windowed", num_layers=2, windows=(9, None), local_rope=Rope(500.0))
EXPERTS = replace(PLAIN, family="experts", experts=Experts(count=4, per_token=2, hidden_dim=32, normalize=True))
BLOCKS, SIZES = 80, (2, 6)
TOLD = Sampling(temperature=0.0, top_logprobs=3)


@pytest.fixture(autouse=True)
def streams(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
    """Not used on a card, which has its own."""
    fake = FakeStreams()
    monkeypatch.setattr("model.kernels.triton.graphs.ROWS", SIZES)  # interpretation is slow
    if device.type == "cpu":
        monkeypatch.setattr("model.kernels.reference.streams_of", lambda _: fake)
    return fake


def make_runner(device: torch.device, config: ModelConfig = PLAIN) -> Runner:
    kernels = TritonKernels(device, torch.float32)
    kv_dtype = torch.int8 if config is EXPERTS else torch.float32
    cache = KVCache(config, BLOCKS, kv_dtype, device, kernels.are_keys_in_rows)
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values, layer.scales):
            if tensor is not None:
                tensor.zero_()
    return Runner(Transformer(config, RandomWeights(), kernels), cache)  # type: ignore[arg-type]


def recorded(device: torch.device, config: ModelConfig = PLAIN, captures: int = 99) -> Runner:
    runner = make_runner(device, config)
    runner.record(SIZES[-1])
    while captures and runner.record_more():
        captures -= 1
    return runner


def chunk(length: int, start: int, blocks: list[int], sampling: Sampling | None = TOLD) -> Chunk:
    tokens = [(7 * length + 5 * i) % 32 for i in range(length)]
    return Chunk(tokens, start, length, blocks, length, sampling)


STEPS = [
    [chunk(3, 0, [3])],
    [chunk(15, 0, [0])],  # more rows than are captured
    [chunk(4, 3, [3]), chunk(17, 15, [0, 4], None), chunk(3, 0, [1])],  # decodes beside parts of prompts
    [chunk(5, 4, [3])],
]
FAR = list(range(5, 5 + 66))
FAR_STEPS = [
    [chunk(1028, 1022, FAR)],  # all of it behind positions that hold zeros, and across the end of a split
    [chunk(1029, 1028, FAR), chunk(7, 6, [3])],  # one sees two splits, one does not
    [chunk(8, 7, [3])],
]


def results(runner: Runner, count: int | None = None) -> list[StepResult]:
    """Of so many of the steps, or of all."""
    steps = FAR_STEPS if runner.transformer.config is LONG else STEPS
    return [runner.run(Batch(chunks)) for chunks in steps[:count]]


@pytest.mark.parametrize("config", [LONG, WINDOWED, EXPERTS], ids=lambda config: config.family)
def test_a_replayed_step_has_the_bits_of_an_eager_one(
    device: torch.device, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, replayed = recorded(device, config), []
    replay = runner.recording.replay  # type: ignore[union-attr]
    monkeypatch.setattr(runner.recording, "replay", lambda *given: [replayed.append(1), replay(*given)][1])
    assert results(runner) == results(make_runner(device, config))
    assert len(replayed) == 3


def test_a_size_is_captured_at_a_time_the_largest_first_and_smaller_steps_are_filled_up_to_it(
    device: torch.device,
) -> None:
    runner = recorded(device, LONG, captures=0)
    graphs = runner.recording
    assert isinstance(graphs, Graphs)
    assert graphs.padded(1, 1) is None
    sizes = [Size(rows, splits) for rows in (6, 2) for splits in (2, 1)]
    for count, size in enumerate(sizes, 1):
        assert runner.record_more()
        assert [graph.size for graph in graphs._graphs] == sizes[:count]
        assert graphs.padded(1, 1) == size.rows
    assert not runner.record_more()
    assert [graphs.padded(rows, 1) for rows in (1, 2, 3, 6, 7)] == [2, 2, 6, 6, None]
    assert graphs.padded(1, 1025) == 2
    assert graphs.padded(1, 2049) is None


def test_padding_and_captures_write_to_the_scrap_block_alone(device: torch.device) -> None:
    runner = make_runner(device)
    runner.cache.poison(list(range(BLOCKS)))
    runner.record(SIZES[-1])
    while runner.record_more():
        pass
    runner.run(Batch([chunk(3, 0, [7]), chunk(2, 0, [9])]))
    for layer in runner.cache.layers:
        for tensor in (layer.keys, layer.values):
            written = [block for block in range(BLOCKS) if not tensor[block].isnan().all()]
            assert written == [7, 9]


def test_a_layout_that_a_graph_does_not_find_where_the_next_one_lies_would_show(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the captured step's for ever."""
    layouts: list[Layout] = []  # as a graph would keep its memory

    def elsewhere(self: TritonKernels, spans: list[Span], tile_rows: int) -> Layout:
        if self.frame is not None:
            self.frame.layout(spans, tile_rows)
        if not layouts or layouts[-1].spans is not spans:
            layouts.append(lay_out(spans, tile_rows, self.device, self.streams.upload))
        return layouts[-1]

    expected = results(make_runner(device), 1)
    monkeypatch.setattr(TritonKernels, "_laid_out", elsewhere)
    assert results(recorded(device, captures=1), 1) != expected


@pytest.mark.parametrize(
    "look",
    [
        lambda x_TD: x_TD.sum().item(),
        lambda x_TD: torch.tensor(1.0, device=x_TD.device),
        lambda x_TD: 1.0 if bool((x_TD > 0).any()) else 2.0,
    ],
    ids=["a number", "a copy from the host", "a condition"],
)
def test_the_host_can_neither_look_nor_hand_over_anything_while_capturing(
    device: torch.device, look: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cpu":
        pytest.skip("a card refuses in its own words")
    runner = recorded(device, captures=0)
    graphs = runner.recording
    assert isinstance(graphs, Graphs)
    forward = graphs._forward
    monkeypatch.setattr(graphs, "_forward", lambda *given: forward(*given) * look(given[0][3]))
    with pytest.raises(HostSync, match="while capturing"):
        runner.record_more()


def test_a_capture_that_fails_is_the_last_and_changes_no_step(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = recorded(device, captures=1)

    def fail(run: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("as the test asked for")

    monkeypatch.setattr(runner.transformer.kernels.streams, "capture", fail)
    assert not runner.record_more()
    assert "a graph could not be captured" in capfd.readouterr().err
    assert not runner.record_more()
    assert results(runner, 1) == results(make_runner(device), 1)


def test_a_graph_that_repeats_something_else_is_not_used(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = recorded(device, captures=0)
    monkeypatch.setattr(runner.transformer.kernels.streams, "capture", lambda run: [run(), lambda: None][1])
    graphs = runner.recording
    assert isinstance(graphs, Graphs)
    forward, calls = graphs._forward, []

    def drifting(inputs: tuple[torch.Tensor, ...], spans: list[Span]) -> torch.Tensor:
        calls.append(1)
        return forward(inputs, spans) * len(calls)

    monkeypatch.setattr(graphs, "_forward", drifting)
    assert not runner.record_more()
    assert graphs.padded(1, 1) is None


def test_steps_are_replayed_one_ahead_of_the_other_and_the_host_waits_once_for_each(
    device: torch.device, streams: FakeStreams
) -> None:
    if device.type != "cpu":
        pytest.skip("a card does not tell of those who look")
    sampling = Sampling(temperature=0.9, seed=4, top_p=0.95)
    plain, tokens = make_runner(device), [*chunk(5, 0, []).tokens]
    for start, length in ((0, 5), (5, 6), (6, 7), (7, 8)):
        (samples,) = plain.run(Batch([Chunk(tokens, start, length, [1, 2], 5, sampling)])).samples
        assert not isinstance(samples, str)
        tokens.append(samples[0].token)
    runner = recorded(device, captures=0)
    for captures in range(3):  # of which all come between two requests
        waits, said = streams.waits, []
        with streams.watched():
            runner.dispatch(Batch([Chunk(tokens[:5], 0, 5, [1, 2], 5, sampling)]))
            for length in (6, 7, 8):
                ahead = Chunk(tokens[: length - 1], length - 1, length, [1, 2], 5, sampling, awaits=0)
                runner.dispatch(Batch([ahead]))
                said.append(runner.collect())
            said.append(runner.collect())
        assert [result.samples for result in said] == [[[Sample(token)]] for token in tokens[5:]]
        assert streams.waits - waits == 4
        assert len(streams.graphs) == captures
        runner.record_more()


def test_what_a_graph_has_left_is_gone_when_another_is_replayed(device: torch.device) -> None:
    runner = recorded(device)
    hidden = [runner._begin(Batch([chunk(rows, 0, [3])])).hidden for rows in (2, 6)]
    if device.type == "cpu":  # on a card, it may happen to lie elsewhere
        assert hidden[0].isnan().all()
    assert not hidden[1].isnan().any()
