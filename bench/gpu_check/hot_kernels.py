"""The kernels in which a step's time goes, each alone, with the model's own weights, cache and sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from bench.gpu_check.loading import STEP_TOKENS, Part, batch
from bench.gpu_check.work import Steps, Work
from model.inputs import pack
from model.kernels import Kernels
from model.kernels.drawing import Draw, Draws
from model.kernels.reference import AttentionShape, LayerCache
from model.kv_cache import BLOCK_SIZE
from model.layers import Mlp
from model.linear import Linear
from model.loading import OpenModel
from model.runner import Runner

ROWS, QUICK_ROWS = (1, 64, STEP_TOKENS), (2,)
DECODES, QUICK_DECODES = (1, 64, 256), (2,)
CONTEXT = 2048
DRAWN = Draw(temperature=0.8, top_p=0.9, top_k=50)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch of it, or a few, and the least that it has to move and to compute."""

    name: str
    rows: int
    context: int | None  # of attention
    work: Work
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Product:
    """Of rows with one of the model's matrices."""

    bytes: int  # of the matrix as it lies on the device
    columns: int
    out: int
    run: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, linear: Linear) -> "Product":
        size = sum(weight.nbytes for weight in linear.weights)
        return cls(size, linear.in_features, sum(linear.parts.values()), linear)


def hot_kernels(model: OpenModel, runner: Runner, is_quick: bool) -> Iterator[Kernel]:
    """Those of a mixture's experts are left out: what they read depends on what the router says."""
    sizes = QUICK_ROWS if is_quick else ROWS
    for name, products in _products(runner).items():
        yield from (_product(model.kernels, name, products, rows) for rows in sizes)
    for parts in _attended(runner, is_quick):
        yield from _attention(model, runner, parts)
    yield from _row_by_row(model, runner, sizes[-1])
    yield from _choices(model, sizes[min(1, len(sizes) - 1)])


def _products(runner: Runner) -> dict[str, list[Product]]:
    """Of all layers, to be taken in turn, as a step does."""
    transformer, named = runner.transformer, dict[str, list[Product]]()
    for layer in transformer.layers:
        named.setdefault("queries, keys, values", []).append(Product.of(layer.attention.qkv))
        named.setdefault("attention's output", []).append(Product.of(layer.attention.out))
        if isinstance(layer.mlp, Mlp):
            named.setdefault("MLP, up", []).append(Product.of(layer.mlp.up))
            named.setdefault("MLP, down", []).append(Product.of(layer.mlp.down))
    named["head"] = [_head(runner)]
    return named


def _head(runner: Runner) -> Product:
    transformer, config = runner.transformer, runner.transformer.config
    if transformer.head is not None:
        return Product.of(transformer.head)
    weight = transformer.embedding.weight
    return Product(
        *(weight.nbytes, config.dim, config.vocab_size), lambda x_TD: transformer.kernels.linear(x_TD, weight)
    )


def _product(kernels: Kernels, name: str, products: Sequence[Product], rows: int) -> Kernel:
    first, turns = products[0], cycle(products)
    x_TD = _random(kernels, rows, first.columns)
    moved = first.bytes + rows * (first.columns + first.out) * x_TD.itemsize
    work = Work(moved, 2.0 * rows * first.out * first.columns)
    return Kernel(name, rows, None, work, lambda: next(turns).run(x_TD))


def _attended(runner: Runner, is_quick: bool) -> Iterator[list[Part]]:
    """Sequences that decode, and one prompt's last step."""
    longest, blocks = runner.transformer.config.context_length, runner.cache.num_blocks
    for count in QUICK_DECODES if is_quick else DECODES:
        yield [Part(1, min(CONTEXT, longest, max(blocks // count, 1) * BLOCK_SIZE))] * count
    context = min(CONTEXT, longest, blocks * BLOCK_SIZE)
    yield [Part(min(STEP_TOKENS, context), context)]


def _attention(model: OpenModel, runner: Runner, parts: list[Part]) -> Iterator[Kernel]:
    """Of one layer, once for each window that layers have; those with the same take turns."""
    config, kernels, steps = model.config, model.kernels, Steps(model)
    spans, rows = pack(batch(runner, parts), kernels.device).spans, sum(part.rows for part in parts)
    q_THd = _random(kernels, rows, config.num_heads, config.head_dim)
    alike: dict[AttentionShape, list[LayerCache]] = {}
    for layer, cache in zip(runner.transformer.layers, runner.cache.layers, strict=True):
        alike.setdefault(layer.attention.shape, []).append(cache)
    for shape, caches in alike.items():
        work = sum((steps.attention(part, shape.window) for part in parts), Work(0.0, 0.0))
        name = "attention" if shape.window is None else f"attention, window {shape.window}"
        turns = cycle(caches)
        yield Kernel(
            *(name, rows, parts[0].context, work),
            lambda shape=shape, turns=turns: kernels.attention(q_THd, next(turns), spans, shape),
        )


def _row_by_row(model: OpenModel, runner: Runner, rows: int) -> Iterator[Kernel]:
    """What reads every number once and writes it: of these, activations are all that is moved."""
    config, kernels, layer = model.config, model.kernels, runner.transformer.layers[0]
    x_TD, y_TD = _random(kernels, rows, config.dim), _random(kernels, rows, config.dim)
    norm = layer.around_attention.norm
    yield Kernel("sum and norm", rows, None, _moves(4 * x_TD.nbytes), lambda: norm.of_sum((x_TD, y_TD)))
    if isinstance(layer.mlp, Mlp):
        mlp, both_TF = layer.mlp, _random(kernels, rows, sum(layer.mlp.up.parts.values()))
        results = both_TF.nbytes // (2 if mlp.gated else 1)
        yield Kernel("activation", rows, None, _moves(both_TF.nbytes + results), lambda: mlp.activate(both_TF))
    yield _stored(model, runner, rows)


def _stored(model: OpenModel, runner: Runner, rows: int) -> Kernel:
    config, kernels, transformer = model.config, model.kernels, runner.transformer
    rows = min(rows, config.context_length, runner.cache.num_blocks * BLOCK_SIZE)
    given = transformer.rows(pack(batch(runner, [Part(rows, rows)]), kernels.device))
    slots, angles, turns = given[2], given[3:5] or None, cycle(runner.cache.layers)
    q_THd = _random(kernels, rows, config.num_heads, config.head_dim)
    k_TGd, v_TGd = (_random(kernels, rows, config.num_kv_heads, config.head_dim) for _ in range(2))
    stored = rows * Steps(model).position_bytes
    moved = (2 if angles else 0) * q_THd.nbytes + k_TGd.nbytes + v_TGd.nbytes + stored
    return Kernel(
        *("rotation and storing", rows, None, _moves(moved)),
        lambda: kernels.rotate_and_store(q_THd, k_TGd, v_TGd, angles, next(turns), slots),
    )


def _choices(model: OpenModel, rows: int) -> Iterator[Kernel]:
    """Logits are read once at least."""
    kernels = model.kernels
    logits_TV = torch.randn(rows, model.config.vocab_size, device=kernels.device)
    draws = Draws.of([DRAWN] * rows, kernels.device)
    yield Kernel("likeliest", rows, None, _moves(logits_TV.nbytes), lambda: kernels.argmax(logits_TV))
    yield Kernel("draw", rows, None, _moves(logits_TV.nbytes), lambda: kernels.draw(logits_TV, draws))


def _moves(size: float) -> Work:
    return Work(float(size), 0.0)


def _random(kernels: Kernels, *shape: int) -> Tensor:
    return torch.randn(shape, device=kernels.device).to(kernels.dtype)
