"""Which part of a model is a rank's: some heads, some of the MLP's width, some of the vocabulary.

As in Shoeybi et al. 2019: what makes heads, or an MLP's inner values, is cut by rows, what takes them by columns, so
that the ranks' results are summed once a sublayer. Experts are cut as the MLP is, every one of them, so that all ranks
have equally much to do whichever are chosen. Norms, the router and learned positions are everybody's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import lcm

from model.checkpoints.contents import TensorInfo
from model.config import ModelConfig
from model.families import Description
from model.parallel import Ranks
from model.quantization.formats import columns_together
from model.weights import Cut, unnumbered

_LAYER = "layers.{}."
_MLPS = ("mlp.", "mlp.experts.{}.")


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank computes with, and which part of every tensor that is."""

    config: ModelConfig  # of its own heads and width; the vocabulary stays whole
    cuts: Mapping[str, Cut] = field(default_factory=dict)  # by our names as in `Names`
    names: Mapping[str, str] = field(default_factory=dict)  # of the checkpoint's tensors, unnumbered -> ours

    def portion(self, name: str, size: int) -> int:
        """How much of so many bytes of the checkpoint's tensor is the rank's, rounded up."""
        cut = self.cuts.get(self.names.get(unnumbered(name), unnumbered(name)))
        return -(-size * cut.length // cut.whole) if cut else size


def share(description: Description, infos: Iterable[TensorInfo], ranks: Ranks) -> Share:
    """The part that is the rank's. Raises ValueError where the model has no parts for so many."""
    config, names = description.config, {source.name: ours for ours, source in description.names.items()}
    if ranks.size == 1:
        return Share(config)
    blocks = _blocks(infos, names)
    kv_heads, heads = _heads(config, blocks.get("attention.out.weight", 1), ranks)
    width = config.experts.hidden_dim if config.experts else config.hidden_dim
    hidden = _piece(width, lcm(*(blocks.get(f"{mlp}down.weight", 1) for mlp in _MLPS)), ranks, "the MLP's width")
    experts = config.experts and replace(config.experts, hidden_dim=len(hidden))
    own = replace(config, num_heads=len(heads), num_kv_heads=len(kv_heads), hidden_dim=len(hidden), experts=experts)
    cuts: dict[str, Cut] = {}
    for name, part, count in [("q", heads, config.num_heads), *((n, kv_heads, config.num_kv_heads) for n in "kv")]:
        cuts |= _made(f"{_LAYER}attention.{name}", part, count, config.head_dim)
    cuts |= _taken(f"{_LAYER}attention.out", heads, config.num_heads, config.head_dim)
    for mlp in _MLPS:
        cuts |= _made(f"{_LAYER}{mlp}gate", hidden, width) | _made(f"{_LAYER}{mlp}up", hidden, width)
        cuts |= _taken(f"{_LAYER}{mlp}down", hidden, width)
    for name in ("embedding", "head"):
        cuts |= _made(name, ranks.piece(config.vocab_size), config.vocab_size)
    if ranks.rank:  # a bias of what is summed is added once
        cuts |= {f"{_LAYER}{name}.bias": Cut(0, 0, 0, config.dim) for name in ("attention.out", "mlp.down")}
    return Share(own, cuts, names)


def _made(name: str, own: range, count: int, size: int = 1) -> dict[str, Cut]:
    """What makes `count` things of `size` rows each."""
    cut = Cut(0, own.start * size, len(own) * size, count * size)
    return {f"{name}.weight": cut, f"{name}.bias": cut}


def _taken(name: str, own: range, count: int, size: int = 1) -> dict[str, Cut]:
    """What takes them, by columns."""
    return {f"{name}.weight": Cut(1, own.start * size, len(own) * size, count * size)}


def _heads(config: ModelConfig, block: int, ranks: Ranks) -> tuple[range, range]:
    """Which KV heads, and which query heads that share them; with fewer KV heads than ranks, several have the same."""
    group = config.num_heads // config.num_kv_heads
    step = lcm(block, group * config.head_dim) // (group * config.head_dim)  # KV heads whose queries fill whole blocks
    if -(-config.num_kv_heads // step) >= ranks.size or step > 1:
        own = _piece(config.num_kv_heads, step, ranks, "the KV heads")
        return own, range(own.start * group, own.stop * group)
    homes = [rank * config.num_kv_heads // ranks.size for rank in range(ranks.size)]
    kv_head = homes[ranks.rank]
    among = Ranks(ranks.rank - homes.index(kv_head), homes.count(kv_head))
    queries = _piece(group, lcm(block, config.head_dim) // config.head_dim, among, "the heads that share a KV head")
    return range(kv_head, kv_head + 1), range(kv_head * group + queries.start, kv_head * group + queries.stop)


def _piece(count: int, step: int, ranks: Ranks, what: str) -> range:
    """A near-even piece of `count` things, of which `step` cannot be parted: a file has packed them together."""
    steps = -(-count // step)
    if steps < ranks.size:
        why = f": the file packs or rounds {step} of them together" if step > 1 else ""
        raise ValueError(f"tensor-parallel: {what} can be cut into {steps} parts, too few for {ranks.size} ranks{why}")
    return ranks.piece(count, step)


def _blocks(infos: Iterable[TensorInfo], names: Mapping[str, str]) -> dict[str, int]:
    """How many columns lie together in the packed matrices of a kind, by our name within a layer."""
    blocks: dict[str, int] = {}
    for info in infos:
        ours = names.get(unnumbered(info.name), unnumbered(info.name)).removeprefix(_LAYER)
        blocks[ours] = lcm(blocks.get(ours, 1), columns_together(info.dtype))
    return blocks
