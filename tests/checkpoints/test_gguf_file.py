"""A GGUF file is read as the gguf package wrote it, and a damaged one is refused in one line, never followed."""

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from model.checkpoints import CheckpointError, TensorInfo, open_checkpoint
from model.checkpoints.gguf_header import read_header
from model.quantization import Format, PackedTensor

Write = Callable[..., Path]
RANDOM = np.random.default_rng(1)


def packed_bytes(form: Format, *rows: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (*rows, form.row_bytes(256)), dtype=np.uint8)


def every_kind_of_tensor() -> dict[str, object]:
    kinds = gguf.GGMLQuantizationType
    bf16 = torch.randn(3, 5).bfloat16()
    return {
        "f32": RANDOM.normal(size=(4, 6)).astype(np.float32),
        "f16": RANDOM.normal(size=(2, 3, 4)).astype(np.float16),
        "bf16": (bf16.view(torch.uint8).numpy(), kinds.BF16),
        "vector": np.arange(7, dtype=np.float32),
        **{form.name: (packed_bytes(form, 3), kinds[form.name]) for form in Format},
        "experts": (packed_bytes(Format.Q4_K, 4, 2), kinds.Q4_K),
    }


def test_tensors_arrive_as_they_were_written(write_gguf: Write) -> None:
    written = every_kind_of_tensor()
    checkpoint = open_checkpoint(write_gguf({}, written))
    assert checkpoint.kind == "gguf"
    found = dict(checkpoint.tensors())
    assert list(found) == list(written) == [info.name for info in checkpoint.infos]
    for name, value in written.items():
        data = torch.from_numpy(value[0] if isinstance(value, tuple) else value)
        tensor = found[name]
        if isinstance(tensor, PackedTensor):
            assert torch.equal(tensor.data, data.reshape(-1, data.shape[-1]))
        else:
            assert torch.equal(tensor, data.view(torch.bfloat16) if name == "bf16" else data)


def test_the_listing_tells_shape_type_and_size(write_gguf: Write) -> None:
    infos = {info.name: info for info in open_checkpoint(write_gguf({}, every_kind_of_tensor())).infos}
    assert infos["f16"] == TensorInfo("f16", (2, 3, 4), "F16", 48)
    assert infos["bf16"] == TensorInfo("bf16", (3, 5), "BF16", 30)
    assert infos["Q6_K"] == TensorInfo("Q6_K", (3, 256), "Q6_K", 630)
    assert infos["experts"] == TensorInfo("experts", (4, 2, 256), "Q4_K", 8 * 144)


def test_stacked_experts_come_flattened(write_gguf: Write) -> None:
    experts = dict(open_checkpoint(write_gguf({}, every_kind_of_tensor())).tensors())["experts"]
    assert isinstance(experts, PackedTensor)
    assert experts.shape == (8, 256)
    assert [expert.shape for expert in experts.split(4)] == [(2, 256)] * 4


def test_metadata_keeps_types_and_order(write_gguf: Write) -> None:
    metadata = {"a": 7, "b": 0.5, "c": True, "d": "Grüße 😀", "e": [1, -2, 3], "f": ["x", "", "ÿ"], "g": [0.25, 0.5]}
    found = open_checkpoint(write_gguf(metadata)).metadata
    assert {key: found[key] for key in metadata} == metadata
    assert found["general.architecture"] == "llama"


def test_writing_to_a_tensor_leaves_the_file_alone(write_gguf: Write) -> None:
    path = write_gguf({}, {"x": np.ones(8, dtype=np.float32)})
    before = path.read_bytes()
    ((_, tensor),) = open_checkpoint(path).tensors()
    assert isinstance(tensor, torch.Tensor)
    tensor.zero_()
    assert path.read_bytes() == before


def test_a_vocabulary_of_49_thousand_is_read_within_a_third_of_a_second_of_processor_time(write_gguf: Write) -> None:
    tokens = [f"token{i}" for i in range(49152)]
    path = write_gguf({"tokens": tokens, "merges": [f"a{i} b{i}" for i in range(48900)], "types": [1] * 49152})
    started = time.thread_time()
    header = read_header(path)
    assert time.thread_time() - started < 0.3
    assert header.metadata["tokens"] == tokens


# Files by hand, to lie with.


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    entries: list[bytes], tensors: list[bytes], data: int = 64, version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    head = magic + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


U64_MAX = 2**64 - 1
ONE = [tensor("a")]
DAMAGED = [
    ("the file is empty", b""),
    ("not a GGUF file: it begins with b'GGML'", gguf_bytes([], ONE, magic=b"GGML")),
    ("a big-endian GGUF file", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
    ("GGUF version 1; versions 2 and 3", gguf_bytes([], ONE, version=1)),
    ("GGUF version 4; versions 2 and 3", gguf_bytes([], ONE, version=4)),
    ("truncated: the header", b"GGUF\x03\x00"),
    ("truncated: the header", b"GGUF" + struct.pack("<IQQ", 3, U64_MAX, 0) + bytes(99)),
    ("truncated: the header", b"GGUF" + struct.pack("<IQQ", 3, 0, U64_MAX) + bytes(99)),
    ("truncated: the header goes on", gguf_bytes([struct.pack("<Q", U64_MAX) + b"key"], ONE)),
    ("truncated: the header goes on", gguf_bytes([entry("k", 8, struct.pack("<Q", 2**63))], ONE)),
    ("truncated: the header goes on", gguf_bytes([entry("k", 9, struct.pack("<IQ", 8, 2**61))], ONE)),
    ("truncated: the header goes on", gguf_bytes([entry("k", 9, struct.pack("<IQ", 4, 2**62))], ONE)),
    ("is not UTF-8", gguf_bytes([entry("k", 8, string(b"\xff\xfe"))], ONE)),
    ("key 'k' appears twice", gguf_bytes([entry("k", 0, b"1"), entry("k", 0, b"2")], ONE)),
    ("key 'k' has unknown type 13", gguf_bytes([entry("k", 13, b"12345678")], ONE)),
    ("key 'k' is an array of type 9", gguf_bytes([entry("k", 9, struct.pack("<IQIQ", 9, 1, 0, 0))], ONE)),
    ("key 'k' is an array of type 99", gguf_bytes([entry("k", 9, struct.pack("<IQ", 99, 1) + bytes(8))], ONE)),
    ("general.alignment is 0", gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 0))], ONE)),
    ("general.alignment is 12", gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 12))], ONE)),
    ("general.alignment is 'x'", gguf_bytes([entry("general.alignment", 8, string("x"))], ONE)),
    ("one of 3 split files", gguf_bytes([entry("split.count", 2, struct.pack("<H", 3))], ONE)),
    ("tensor 'a' appears twice", gguf_bytes([], [tensor("a"), tensor("a", offset=32)])),
    ("tensor 'a' has 0 dimensions", gguf_bytes([], [tensor("a", ())])),
    ("tensor 'a' has 5 dimensions", gguf_bytes([], [tensor("a", (1, 1, 1, 1, 1))])),
    ("tensor 'a' has 4294967295 dimensions", gguf_bytes([], [string("a") + b"\xff" * 40])),
    ("tensor 'a' has an empty dimension", gguf_bytes([], [tensor("a", (0, 8))])),
    ("tensor 'a' has GGML type 20; supported are F32", gguf_bytes([], [tensor("a", (32, 2), kind=20)])),
    ("tensor 'a' of shape (2, 33) cannot be packed as Q4_0", gguf_bytes([], [tensor("a", (33, 2), kind=2)])),
    ("tensor 'a' of shape (32,) cannot be packed as Q4_0", gguf_bytes([], [tensor("a", (32,), kind=2)])),
    ("tensor 'a' is not aligned to 32 bytes", gguf_bytes([], [tensor("a", offset=4)])),
    ("tensors 'a' and 'b' overlap", gguf_bytes([], [tensor("a", (16,)), tensor("b", offset=32)])),
    ("tensors 'b' and 'a' overlap", gguf_bytes([], [tensor("a"), tensor("b")][::-1])),
    ("truncated: tensor 'a' ends at byte 96 of 95", gguf_bytes([], ONE, data=32)[:-1]),
    ("truncated: tensor 'a' ends at", gguf_bytes([], [tensor("a", (2**33, 2**33, 2**33))])),
    ("truncated: tensor 'a' ends at", gguf_bytes([], [tensor("a", offset=2**64 - 32)])),
]


@pytest.mark.parametrize(("reason", "data"), DAMAGED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_file_is_refused_with_its_name_and_the_reason(reason: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_a_name_with_a_line_break_cannot_break_the_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(gguf_bytes([], [tensor("evil\nline" * 500, kind=99)]))
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.fixture
def whole(write_gguf: Write) -> Path:
    metadata = {"n": 3, "words": ["a", "bc", "def"], "numbers": [1, 2, 3], "s": "text"}
    return write_gguf(metadata, {"x": np.ones((4, 8), dtype=np.float32), "y": np.ones(8, dtype=np.float16)})


def test_a_file_cut_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    header = read_header(whole)
    end = max(start + info.nbytes for start, info in zip(header.starts, header.infos, strict=True))
    path = tmp_path / "cut.gguf"
    for size in range(end):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_header(path)
    path.write_bytes(data[:end])
    assert read_header(path) == header


def test_random_damage_is_refused_or_read_but_never_anything_else(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    end_of_header = read_header(whole).starts[0]
    choose = random.Random(3)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(choose.randint(1, 4)):
            damaged[choose.randrange(4, end_of_header)] = choose.choice([0, 1, 8, 9, 127, 255, choose.randrange(256)])
        path.write_bytes(damaged)
        try:
            for info, start in zip(read_header(path).infos, read_header(path).starts, strict=True):
                assert 0 < start <= start + info.nbytes <= len(damaged)
        except CheckpointError:
            refused += 1
    assert 250 < refused < 1500


def test_a_folder_in_place_of_a_file_and_an_unknown_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.gguf: No such file"):
        open_checkpoint(tmp_path / "missing.gguf")
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"weights\.pt: neither a GGUF nor a safetensors file"):
        open_checkpoint(tmp_path / "weights.pt")


def test_a_folder_with_one_gguf_file_is_that_file(whole: Path) -> None:
    assert open_checkpoint(whole.parent).path == whole
    (whole.parent / "other.gguf").write_bytes(whole.read_bytes())
    with pytest.raises(CheckpointError, match=r"several GGUF files, name one: other\.gguf, tiny\.gguf$"):
        open_checkpoint(whole.parent)


def test_the_bytes_decide_where_the_name_does_not(whole: Path) -> None:
    blob = whole.rename(whole.with_name("0a1b2c"))
    assert open_checkpoint(blob).kind == "gguf"
