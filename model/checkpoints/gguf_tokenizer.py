"""A GGUF vocabulary written as tokenizer.json, for the tokenizers library."""

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoints.contents import TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.gguf_vocabulary import Keys, TokenType, Vocabulary

Json = dict[str, Any]

SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDING_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")  # end of sequence, of turn, of message
SPACE = "▁"  # how SentencePiece writes a space

# The published patterns of the families: contractions, words, numbers, punctuation, line ends, runs of space.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> Json:
    """Writes bytes as printable characters; `use_regex` splits by GPT-2's pattern first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[Json]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(use_regex=False)]


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How a family cuts text into words before merging, and what else goes with it."""

    steps: list[Json]
    normalizer: Json | None = None
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    adds_bos: bool = False  # where the file does not say


PRE_TOKENIZERS = {
    "gpt-2": _PreTokenizer([_byte_level(use_regex=True)]),
    "smollm": _PreTokenizer([{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)]),
    "llama-bpe": _PreTokenizer(_split(_LLAMA3), ignore_merges=True, adds_bos=True),
    "qwen2": _PreTokenizer(_split(_QWEN2), normalizer={"type": "NFC"}),
}


def tokenizer_card(path: Path, metadata: dict[str, Any]) -> TokenizerCard:
    """Raises CheckpointError where the file holds no vocabulary, or one of a kind that we cannot follow."""
    keys = Keys(path, metadata)
    kind = keys.text("model")
    if kind not in ("gpt2", "llama"):
        raise keys.refusal("model", f"is {reprlib.repr(kind)}; supported are gpt2 (byte-level BPE) and llama")
    vocabulary = Vocabulary.read(keys)
    tokenizer = _byte_level_bpe(vocabulary) if kind == "gpt2" else _sentencepiece(vocabulary)
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise CheckpointError(path, "key tokenizer.chat_template is not a string")
    named = {name: vocabulary.token_id(key) for name, key in SPECIAL_TOKENS.items()}
    endings = (vocabulary.token_id(key) for key in ENDING_KEYS)
    return TokenizerCard(
        tokenizer_json=json.dumps(tokenizer, ensure_ascii=False),
        chat_template=template,
        special_tokens={name: vocabulary.tokens[id] for name, id in named.items() if id is not None},
        eos_ids=list(dict.fromkeys(id for id in endings if id is not None)),
        name=path.stem,
    )


def _byte_level_bpe(vocabulary: Vocabulary) -> Json:
    """Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.2."""
    keys = vocabulary.keys
    name = keys.text("pre")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise keys.refusal("pre", f"names an unknown pre-tokenizer, {reprlib.repr(name)}; known are {known}")
    if keys.flag("add_space_prefix", False):
        raise keys.refusal("add_space_prefix", "is true, which is for SentencePiece only")
    pre = PRE_TOKENIZERS[name]
    return {
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.steps},
        "post_processor": _post_processor(vocabulary, pre.adds_bos),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids,
            "merges": _listed_merges(vocabulary),
            "ignore_merges": pre.ignore_merges,
        },
    }


def _listed_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    merges = []
    for merge in vocabulary.keys.array("merges", str):
        left, _, right = merge.partition(" ")
        if left not in vocabulary.ids or right not in vocabulary.ids or left + right not in vocabulary.ids:
            raise vocabulary.keys.refusal("merges", f"has {reprlib.repr(merge)}, whose parts or sum are no tokens")
        merges.append((left, right))
    return merges


def _sentencepiece(vocabulary: Vocabulary) -> Json:
    """SentencePiece's BPE, unnormalised. Text after an added token gets the space prefix anew, as in llama.cpp."""
    keys = vocabulary.keys
    if keys.flag("remove_extra_whitespaces", False):
        raise keys.refusal("remove_extra_whitespaces", "is true, which is not supported")
    if keys.metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise keys.refusal("precompiled_charsmap", "normalises text, which is not supported")
    normalizer, decoder = _spaces(has_prefix=keys.flag("add_space_prefix", True))
    unknown = vocabulary.of_type(TokenType.UNKNOWN)
    has_bytes = bool(vocabulary.of_type(TokenType.BYTE))
    if not unknown and not has_bytes:
        raise keys.refusal("token_type", "has neither an unknown token nor byte tokens, so that text would be lost")
    return {
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary, adds_bos=True),
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids,
            "merges": _scored_merges(vocabulary),
            "unk_token": unknown[0][1] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
        },
    }


def _spaces(has_prefix: bool) -> tuple[Json, Json]:
    """The normalizer that writes spaces as pieces have them, and the decoder that undoes it."""
    escape: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decode: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if not has_prefix:
        return escape, {"type": "Sequence", "decoders": decode}
    prefix = {"type": "Prepend", "prepend": SPACE}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "normalizers": [prefix, escape]}, {"type": "Sequence", "decoders": [*decode, strip]}


def _scored_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours that make the piece of the best score: every way to make it is a merge."""
    scores = vocabulary.keys.array("scores", float, len(vocabulary.tokens))
    normal = sorted(vocabulary.of_type(TokenType.NORMAL), key=lambda token: -scores[token[0]])
    pieces = dict.fromkeys(piece for _, piece in normal)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _added_tokens(vocabulary: Vocabulary) -> list[Json]:
    """Tokens that are found in raw text before anything else is. Those that a user defined count as text."""
    found = vocabulary.of_type(TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
    as_is = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id, "content": token, "special": vocabulary.types[id] != TokenType.USER_DEFINED, **as_is}
        for id, token in found
    ]


def _post_processor(vocabulary: Vocabulary, adds_bos: bool) -> Json | None:
    """What goes before and after a text; `adds_bos` decides where the file does not."""
    start = _wanted(vocabulary, "add_bos_token", "bos_token_id", adds_bos)
    end = _wanted(vocabulary, "add_eos_token", "eos_token_id", False)
    if not start and not end:
        return None
    special = [vocabulary.tokens[id] for id in start + end]
    pieces: list[Json] = [{"SpecialToken": {"id": token, "type_id": 0}} for token in special]
    single, pair = (
        [*pieces[: len(start)], {"Sequence": {"id": text, "type_id": 0}}, *pieces[len(start) :]] for text in "AB"
    )
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + pair,
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]} for token in special
        },
    }


def _wanted(vocabulary: Vocabulary, flag: str, key: str, default: bool) -> list[int]:
    """The id under `key` where `flag` asks for it; an explicit wish for a token that is not named is refused."""
    id = vocabulary.token_id(key)
    if not vocabulary.keys.flag(flag, default and id is not None):
        return []
    if id is None:
        raise vocabulary.keys.refusal(flag, f"is true, but {key} is missing")
    return [id]
