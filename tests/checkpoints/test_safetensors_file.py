"""A Hugging Face folder is read whole or in shards, with its tokenizer, and a damaged one is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from model.checkpoints import CheckpointError, TensorInfo, open_checkpoint

Folder = Callable[..., Path]
TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.randn(2, 5).half(),
    "c": torch.randn(2, 2, 2).bfloat16(),
    "d": torch.randn(6),
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "llama", "eos_token_id": 2})
    tokenizer = Tokenizer(BPE(vocab={"h": 0, "i": 1, "<end>": 2}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<start>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def whole(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors")
    return folder


@pytest.fixture
def sharded(folder: Path) -> Path:
    parts = {"model-00001-of-00002.safetensors": ["c", "a"], "model-00002-of-00002.safetensors": ["b", "d"]}
    for file, names in parts.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_tensors_arrive_as_they_were_saved(layout: str, request: pytest.FixtureRequest) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(layout))
    assert checkpoint.kind == "safetensors"
    assert checkpoint.metadata["model_type"] == "llama"
    found = dict(checkpoint.tensors())
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert isinstance(found[name], torch.Tensor)
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_listing_tells_shape_type_and_size(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert [info.name for info in checkpoint.infos] == [name for name, _ in checkpoint.tensors()]
    infos = {info.name: info for info in checkpoint.infos}
    assert infos["a"] == TensorInfo("a", (3, 4), "F32", 48)
    assert infos["b"] == TensorInfo("b", (2, 5), "F16", 20)
    assert infos["c"] == TensorInfo("c", (2, 2, 2), "BF16", 16)


def test_one_file_of_a_folder_can_be_named(whole: Path) -> None:
    path = (whole / "model.safetensors").rename(whole / "other.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.path == path
    assert len(checkpoint.infos) == len(TENSORS)
    assert checkpoint.tokenizer().name == "my-model"


def test_pickles_and_code_are_not_touched(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04would be unpickled")
    with pytest.raises(CheckpointError, match=r"nor a GGUF file; pickled weights \(\*\.bin\) are not read$"):
        open_checkpoint(folder)


def test_a_damaged_header_is_refused_with_the_file(whole: Path) -> None:
    path = whole / "model.safetensors"
    data = path.read_bytes()
    for damaged in (b"", data[:4], data[:40], data[:-1], b"\xff" * 8 + data[8:], data[:9] + b"!" + data[10:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refusal:
            open_checkpoint(whole)
        assert str(refusal.value).startswith(f"{path}: ")
        assert "\n" not in str(refusal.value)


def test_an_unsupported_type_is_refused_with_the_tensor(folder: Path) -> None:
    save_file({"fine": torch.ones(2), "steps": torch.ones(2, dtype=torch.int64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'steps' has dtype I64; supported are F32, F16, BF16$"):
        open_checkpoint(folder)


SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": SHARD_1, "c": SHARD_1, "b": SHARD_2}, f"{SHARD_2} also holds tensor 'd'"),
        ({"a": SHARD_1, "c": SHARD_1, "b": SHARD_2, "d": SHARD_2, "x": SHARD_1}, f"{SHARD_1} lacks tensor 'x'"),
        ({"a": "missing.safetensors"}, "shard missing.safetensors is missing"),
        ({"a": f"../my-model/{SHARD_1}"}, "which is not a file beside it"),
        ({"a": 1}, "weight_map does not map tensors to files"),
        (None, "weight_map does not map tensors to files"),
    ],
    ids=str,
)
def test_an_index_that_lies_is_refused(weight_map: dict[str, Any] | None, reason: str, sharded: Path) -> None:
    write_json(sharded / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(sharded)
    assert str(refusal.value).startswith(f"{sharded / 'model.safetensors.index.json'}: ")
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "not a JSON object"), ("[" * 10**5, "not JSON")],
    ids=["missing", "cut", "list", "deep"],
)
def test_a_broken_config_is_refused(text: str | None, reason: str, whole: Path) -> None:
    (whole / "config.json").unlink()
    if text is not None:
        (whole / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: {reason}"):
        open_checkpoint(whole)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors"):
        open_checkpoint(tmp_path)


def test_the_card_gathers_what_the_files_say(whole: Path) -> None:
    settings = {"bos_token": {"content": "<start>", "lstrip": False}, "eos_token": "<end>", "pad_token": None}
    write_json(whole / "tokenizer_config.json", settings | {"add_bos_token": True, "chat_template": "plain"})
    write_json(whole / "special_tokens_map.json", {"unk_token": "h", "eos_token": "old"})
    write_json(whole / "generation_config.json", {"eos_token_id": [1, 2]})
    card = open_checkpoint(whole).tokenizer()
    assert card.name == "my-model"
    assert card.special_tokens == {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "h"}
    assert card.eos_ids == [1, 2]
    assert card.chat_template == "plain"
    assert Tokenizer.from_str(card.tokenizer_json).encode("hi").ids == [0, 1]


def test_a_folder_with_only_the_needed_files_has_a_card(whole: Path) -> None:
    card = open_checkpoint(whole).tokenizer()
    assert (card.special_tokens, card.eos_ids, card.chat_template) == ({}, [2], None)


def test_the_chat_template_of_its_own_file_comes_first(whole: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
    write_json(whole / "tokenizer_config.json", {"chat_template": named})
    assert open_checkpoint(whole).tokenizer().chat_template == "listed"
    write_json(whole / "chat_template.json", {"chat_template": "json"})
    assert open_checkpoint(whole).tokenizer().chat_template == "json"
    (whole / "chat_template.jinja").write_text("{{ jinja }}")
    assert open_checkpoint(whole).tokenizer().chat_template == "{{ jinja }}"


def test_a_snapshot_in_the_hubs_cache_is_named_after_its_repository(whole: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--some-model" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    whole.rename(snapshot)
    assert open_checkpoint(snapshot).tokenizer().name == "org/some-model"


@pytest.mark.parametrize(
    ("file", "value", "reason"),
    [
        (
            "tokenizer_config.json",
            {"eos_token": "<absent>"},
            r"tokenizer\.json: has no id for the eos_token '<absent>'",
        ),
        ("tokenizer_config.json", {"bos_token": 3}, r"tokenizer_config\.json: bos_token is not a text"),
        ("tokenizer_config.json", {"chat_template": 3}, r"tokenizer_config\.json: chat_template is not a text"),
        ("generation_config.json", {"eos_token_id": "2"}, r"generation_config\.json: eos_token_id is '2'"),
        ("generation_config.json", {"eos_token_id": [True]}, r"generation_config\.json: eos_token_id is \[True\]"),
        ("tokenizer.json", [], r"tokenizer\.json: not a JSON object"),
    ],
    ids=str,
)
def test_a_broken_tokenizer_file_is_refused(file: str, value: Any, reason: str, whole: Path) -> None:
    write_json(whole / file, value)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(whole).tokenizer()


def test_a_folder_without_a_tokenizer_still_opens(whole: Path) -> None:
    (whole / "tokenizer.json").unlink()
    checkpoint = open_checkpoint(whole)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: No such file or directory$"):
        checkpoint.tokenizer()
