"""A GGUF vocabulary, rewritten as tokenizer.json, gives the ids of the tokenizer it came from."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from model.checkpoints import DEFAULT_MODEL, CheckpointError, TokenizerCard, locate, open_checkpoint

Write = Callable[..., Path]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# As the families' own tokenizer.json files have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTE_LEVEL]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTE_LEVEL]),
}


def train(pre: str, texts: list[str]) -> Tokenizer:
    original = Tokenizer(BPE(ignore_merges=pre == "llama-bpe"))
    original.pre_tokenizer = ORIGINALS[pre]
    original.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        original.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    original.train_from_iterator(texts * 2, trainer)
    original.add_tokens([AddedToken("<think>", normalized=False)])
    return original


def byte_level_metadata(original: Tokenizer, pre: str) -> dict[str, Any]:

    model = json.loads(original.to_str())["model"]
    ids = original.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    types = [3 if token in SPECIAL else 4 if token == "<think>" else 1 for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def card_of(path: Path) -> TokenizerCard:
    return open_checkpoint(path).tokenizer()


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_str(card_of(path).tokenizer_json)


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_ids_and_text_are_the_originals(pre: str, texts: list[str], write_gguf: Write) -> None:
    original = train(pre, texts)
    ours = load(write_gguf(byte_level_metadata(original, pre)))
    mixed = ["<|im_start|>user\nHi <think>1+1</think><|im_end|>\n", "a<think> b", "<|im_end|><|im_end|>  x"]
    for text in texts + mixed:
        expected = original.encode(text)
        found = ours.encode(text)
        assert found.ids == expected.ids, text
        assert found.offsets == expected.offsets, text
        assert ours.decode(found.ids) == original.decode(expected.ids), text
        assert ours.decode(found.ids, skip_special_tokens=False) == original.decode(
            expected.ids, skip_special_tokens=False
        )


def test_a_llama_word_that_is_a_token_needs_no_merges(texts: list[str], write_gguf: Write) -> None:
    metadata = byte_level_metadata(train("llama-bpe", texts), "llama-bpe")
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = [*tokens, "Ġxylophonic"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    assert load(write_gguf(metadata)).encode(" xylophonic").ids == [len(tokens)]
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    assert len(load(write_gguf(metadata)).encode(" xylophonic").ids) > 1


def test_the_flags_decide_what_goes_around_a_text(texts: list[str], write_gguf: Write) -> None:
    metadata = byte_level_metadata(train("llama-bpe", texts), "llama-bpe")
    bare = load(write_gguf(metadata)).encode("Hi").ids
    metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    both = load(write_gguf(metadata))
    assert both.encode("Hi").ids == [1, *bare, 2]
    assert both.encode("Hi", add_special_tokens=False).ids == bare
    del metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]
    assert load(write_gguf(metadata)).encode("Hi").ids == [1, *bare]  # the llama3 default


def test_the_card_names_special_tokens_endings_and_template(texts: list[str], write_gguf: Write) -> None:
    metadata = byte_level_metadata(train("gpt-2", texts), "gpt-2") | {"tokenizer.chat_template": "{{ messages }}"}
    card = card_of(write_gguf(metadata, name="Some-Model.Q4_K_M.gguf"))
    assert card.name == "Some-Model.Q4_K_M"
    assert card.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert card.eos_ids == [2, 0]
    assert card.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre names an unknown pre-tokenizer, 'tekken'; known are gpt-2"),
        ({"pre": None}, r"tokenizer\.ggml\.pre is missing"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert'"),
        ({"model": None}, r"tokenizer\.ggml\.model is missing"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens is not an array of str"),
        ({"token_type": [1]}, r"token_type has 1 entries, tokenizer\.ggml\.tokens has \d+"),
        ({"merges": ["Ġt zzz"]}, r"merges has 'Ġt zzz'"),
        ({"merges": ["unspaced"]}, r"merges has 'unspaced'"),
        ({"eos_token_id": 10**6}, r"eos_token_id is 1000000, not one of \d+ token ids"),
        ({"add_bos_token": True, "bos_token_id": None}, r"add_bos_token is true, but bos_token_id is missing"),
        ({"add_bos_token": "yes"}, r"add_bos_token is 'yes', not a bool"),
        ({"add_space_prefix": True}, r"add_space_prefix is true, which is for SentencePiece only"),
    ],
    ids=str,
)
def test_a_vocabulary_that_cannot_be_followed_is_refused_by_key(
    change: dict[str, Any], reason: str, texts: list[str], write_gguf: Write
) -> None:
    metadata = byte_level_metadata(train("gpt-2", texts[:6]), "gpt-2")
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    path = write_gguf({key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match=rf"^{regex.escape(str(path))}: key .*{reason}"):
        card_of(path)


def test_a_text_that_stands_for_two_tokens_is_refused(texts: list[str], write_gguf: Write) -> None:
    metadata = byte_level_metadata(train("gpt-2", texts[:6]), "gpt-2")
    metadata["tokenizer.ggml.tokens"][-1] = "<|im_end|>"
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.tokens has '<\|im_end\|>' twice"):
        card_of(write_gguf(metadata))


def train_sentencepiece(texts: list[str], **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts[:18] * 3 for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=1400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(
    original: sentencepiece.SentencePieceProcessor, user_defined: tuple[str, ...] = ()
) -> dict[str, Any]:
    ids = range(original.get_piece_size())
    own = {original.piece_to_id(piece) for piece in user_defined}

    def kind(id: int) -> int:
        if id in own:
            return 4
        return 2 if original.is_unknown(id) else 3 if original.is_control(id) else 6 if original.is_byte(id) else 1

    pieces = [original.id_to_piece(id) for id in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        # llama.cpp's converter writes what users defined as it stands in text
        "tokenizer.ggml.tokens": [piece.replace("▁", " ") if id in own else piece for id, piece in enumerate(pieces)],
        "tokenizer.ggml.scores": [float(original.get_score(id)) for id in ids],
        "tokenizer.ggml.token_type": [kind(id) for id in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentencepiece_ids_and_text_are_the_originals(texts: list[str], write_gguf: Write) -> None:
    original = train_sentencepiece(texts)
    ours = load(write_gguf(sentencepiece_metadata(original)))
    for text in texts:
        expected = original.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == expected, text
        assert ours.encode(text).ids == [1, *expected]
        assert ours.decode(expected) == original.decode(expected)


def test_sentencepiece_without_a_space_prefix_keeps_user_defined_pieces_whole(
    texts: list[str], write_gguf: Write
) -> None:
    own = ("<code>", "▁▁▁▁▁▁")
    original = train_sentencepiece(texts, add_dummy_prefix=False, user_defined_symbols=list(own))
    metadata = sentencepiece_metadata(original, own) | {"tokenizer.ggml.add_space_prefix": False}
    ours = load(write_gguf(metadata))
    for text in [*texts, "x<code>y", "a" + " " * 13 + "b <code>"]:
        expected = original.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == expected, text
        assert ours.decode(expected) == original.decode(expected)
    assert original.piece_to_id("<code>") in ours.encode("x<code>y").ids


def test_sentencepiece_without_bytes_has_one_unknown_token_per_run(texts: list[str], write_gguf: Write) -> None:
    metadata = sentencepiece_metadata(train_sentencepiece(texts))
    metadata["tokenizer.ggml.token_type"] = [5 if t == 6 else t for t in metadata["tokenizer.ggml.token_type"]]
    ours = load(write_gguf(metadata))
    assert ours.encode("\U0010fffe\U0010fffd", add_special_tokens=False).ids[-1] == 0
    metadata["tokenizer.ggml.token_type"] = [1 if t == 2 else t for t in metadata["tokenizer.ggml.token_type"]]
    with pytest.raises(CheckpointError, match="neither an unknown token nor byte tokens"):
        card_of(write_gguf(metadata))


@pytest.mark.parametrize(("key", "value"), [("remove_extra_whitespaces", True), ("precompiled_charsmap", [1, 2, 3])])
def test_a_normalising_sentencepiece_vocabulary_is_refused(
    key: str, value: Any, texts: list[str], write_gguf: Write
) -> None:
    metadata = sentencepiece_metadata(train_sentencepiece(texts[:8])) | {f"tokenizer.ggml.{key}": value}
    with pytest.raises(CheckpointError, match=key):
        card_of(write_gguf(metadata))


def slow_byte_level_bpe(metadata: dict[str, Any], patterns: list[str]) -> Callable[[str], list[int]]:
    """BPE as the paper tells it: join the best pair until none is left. Shares nothing with the code under test."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    ids = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}

    def encode_word(word: str) -> list[int]:
        symbols = [letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
            at = next(i for i in range(len(symbols)) if tuple(symbols[i : i + 2]) == min(pairs, key=ranks.__getitem__))
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [ids[symbol] for symbol in symbols if symbol in ids]  # some bytes have no token

    def split(words: list[str], pattern: str) -> list[str]:
        parts = (part for word in words for part in regex.split(f"({pattern})", word))
        return [part for part in parts if part]

    def encode(text: str) -> list[int]:
        words = [text]
        for pattern in patterns:
            words = split(words, pattern)
        return [id for word in words for id in encode_word(word)]

    return encode


def test_the_default_models_vocabulary_gives_the_ids_of_plain_bpe(texts: list[str]) -> None:
    checkpoint = open_checkpoint(locate(DEFAULT_MODEL, lambda stage, done, total: None))
    card = checkpoint.tokenizer()
    assert card.eos_ids == [2]
    assert card.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert card.chat_template is not None
    ours = Tokenizer.from_str(card.tokenizer_json)
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    plain = slow_byte_level_bpe(checkpoint.metadata, [r"\p{N}", gpt2])
    for text in texts:
        assert ours.encode(text).ids == plain(text), text
    assert ours.encode("<|im_start|>user").ids[0] == 1
