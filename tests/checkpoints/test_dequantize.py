"""Every packed format means to us, bit for bit, what it means to the gguf package."""

import gguf
import numpy as np
import pytest
import torch

from model.quantization.formats import Format
from model.quantization.packed import SLAB_WEIGHTS, PackedTensor

# Where the float16 scales of a block lie; any other byte may hold anything.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def random_bytes(form: Format, rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(form.block_bytes)
    blocks = generator.integers(0, 256, (rows * columns // form.block_size, form.block_bytes), dtype=np.uint8)
    for start in HALVES[form.name]:
        scales = generator.normal(0, 1, (len(blocks), 1)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, form.row_bytes(columns))


def reference(form: Format, data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[form.name]))


def bits(weights: torch.Tensor) -> torch.Tensor:
    return weights.view(torch.int32)  # so that -0.0 is not 0.0


@pytest.mark.parametrize("form", Format, ids=lambda form: form.name)
def test_a_block_has_the_size_gguf_gives_it(form: Format) -> None:
    assert form.value == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form.name]]


@pytest.mark.parametrize("form", Format, ids=lambda form: form.name)
def test_random_bytes_expand_bit_equal_to_gguf(form: Format) -> None:
    data = random_bytes(form, 37, 1024)
    packed = PackedTensor(form, (37, 1024), torch.from_numpy(data))
    assert torch.equal(bits(packed.dequantize()), bits(reference(form, data)))


@pytest.mark.parametrize("form", Format, ids=lambda form: form.name)
@pytest.mark.parametrize("scale", [0.0, -0.0, 1.0, -1.0, 65504.0, 6e-8, 0.0999755859375])
def test_every_byte_value_at_every_place_expands_bit_equal_to_gguf(form: Format, scale: float) -> None:
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], form.block_bytes, axis=1)
    for start in HALVES[form.name]:
        blocks[:, start : start + 2] = np.array([scale], dtype=np.float16).view(np.uint8)
    packed = PackedTensor(form, (256, form.block_size), torch.from_numpy(blocks))
    assert torch.equal(bits(packed.dequantize()), bits(reference(form, blocks)))


def test_slabs_leave_no_seam() -> None:
    rows = 2 * SLAB_WEIGHTS // 32 + 1
    data = random_bytes(Format.Q4_1, rows, 32)
    packed = PackedTensor(Format.Q4_1, (rows, 32), torch.from_numpy(data))
    assert torch.equal(packed.dequantize(), reference(Format.Q4_1, data))


def test_a_row_longer_than_a_slab_expands() -> None:
    columns = SLAB_WEIGHTS + 256
    data = random_bytes(Format.Q6_K, 2, columns)
    packed = PackedTensor(Format.Q6_K, (2, columns), torch.from_numpy(data))
    assert torch.equal(packed.dequantize(), reference(Format.Q6_K, data))


def test_selected_rows_expand_to_the_rows_of_the_whole() -> None:
    packed = PackedTensor(Format.Q5_K, (8, 512), torch.from_numpy(random_bytes(Format.Q5_K, 8, 512)))
    index = torch.tensor([7, 0, 0, 3])
    chosen = packed.select_rows(index)
    assert chosen.shape == (4, 512)
    assert chosen.nbytes == packed.nbytes // 2
    assert torch.equal(chosen.dequantize(), packed.dequantize()[index])


def test_stacked_experts_split_into_views() -> None:
    packed = PackedTensor(Format.Q8_0, (12, 64), torch.from_numpy(random_bytes(Format.Q8_0, 12, 64)))
    experts = packed.split(3)
    assert [expert.shape for expert in experts] == [(4, 64)] * 3
    assert torch.equal(torch.cat([expert.dequantize() for expert in experts]), packed.dequantize())
    assert experts[1].data.data_ptr() == packed.data[4].data_ptr()


@pytest.mark.parametrize("form", Format, ids=lambda form: form.name)
def test_a_part_expands_to_that_part_of_the_whole(form: Format) -> None:
    packed = PackedTensor(form, (8, 1024), torch.from_numpy(random_bytes(form, 8, 1024)))
    part = packed.narrow(0, 2, 5).narrow(1, 256, 512)
    assert part.data.untyped_storage().data_ptr() == packed.data.untyped_storage().data_ptr()
    assert torch.equal(part.dequantize(), packed.dequantize()[2:7, 256:768])


def test_columns_are_cut_at_whole_blocks_only() -> None:
    packed = PackedTensor(Format.Q4_K, (8, 1024), torch.from_numpy(random_bytes(Format.Q4_K, 8, 1024)))
    with pytest.raises(ValueError, match="columns 0 to 128 are no whole blocks of Q4_K"):
        packed.narrow(1, 0, 128)
