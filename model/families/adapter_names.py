"""What the projections that adapters add to are called in Hugging Face's models, whatever file ours is read from."""

import re

from model.families.huggingface_names import ATTENTION, MLP

_LAYER = re.compile(r"(?:.+\.)?(?:layers|h)\.(\d{1,6})\.(.+)")

# Without the layer's own name; GPT-2 has queries, keys and values in one module, whose rows are theirs in this order.
TARGETS: dict[str, tuple[str, ...]] = {
    **{theirs: (ours,) for ours, theirs in (ATTENTION | MLP).items() if not ours.endswith("_norm")},
    "attn.c_attn": ("attention.q", "attention.k", "attention.v"),
    "attn.c_proj": ("attention.out",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}


def parts_of(module: str) -> tuple[str, ...]:
    """Our names of the matrices whose rows the module stacks; none where adapters to it are not supported."""
    match = _LAYER.fullmatch(module)
    return tuple(f"layers.{int(match[1])}.{part}" for part in TARGETS.get(match[2], ())) if match else ()
