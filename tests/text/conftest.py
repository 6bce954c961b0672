"""Small tokenizers of every kind that models come with, trained here, and the cards that carry them."""

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.engine.messages import ModelCard

CORPUS = [
    "The quick brown fox jumps over the lazy dog. She said: \"It's 12:30, isn't it?\"\n\n",
    "def main(argv: list[str]) -> int:\n\treturn sum(x ** 2 for x in range(10))  # Σx²\r\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ¿Qué tal, señor Muñoz?",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。いろはにほへと ちりぬるを。나는 유리를 먹을 수 있어요.",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني. אני יכול לאכול זכוכית",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇪🇺 e\u0301 n\u0303 a\u0302\u0323 क्षि นี้",
    "   leading, trailing and    inner    spaces \t\t tabs   ",
    "null \x00 bell \x07 escape \x1b[31m \u200b\u2028\ufeff \ufffd",
]
ROWS_BEYOND = 16  # embeddings are often padded
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def card_of(library: Tokenizer, rows_beyond: int = ROWS_BEYOND) -> ModelCard:
    return ModelCard(
        name="tiny",
        family="llama",
        vocab_size=library.get_vocab_size() + rows_beyond,
        dim=8,
        context_length=64,
        tokenizer=library.to_str(),
        chat_template=None,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        eos_ids=[library.token_to_id("</s>")],
    )


def _trained_byte_level() -> Tokenizer:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    library.add_tokens(["<tool>", "é!", "    "])
    return library


def _sentencepiece(decoder_steps: list[decoders.Decoder]) -> Tokenizer:
    """As Llama 2 comes: BPE without pre-tokenizer, spaces as ▁, unknown characters as byte tokens."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = trained.get_vocab()
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learnt, key=learnt.__getitem__)]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    merges = [(p[:i], p[i:]) for p in learnt for i in range(1, len(p)) if p[:i] in vocabulary and p[i:] in vocabulary]
    merges.sort(key=lambda merge: vocabulary["".join(merge)])
    library = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(decoder_steps)
    library.add_special_tokens([AddedToken(name, normalized=False) for name in ["<unk>", *SPECIAL]])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return library


def _llama() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _sentencepiece(steps)


def _gemma() -> Tokenizer:
    library = _sentencepiece([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.normalizer = normalizers.Replace(" ", "▁")
    return library


def _unigram() -> Tokenizer:
    """With Metaspace, which puts a space before the first word only."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    library.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
        ),
    )
    return library


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _trained_byte_level,
    "llama": _llama,
    "gemma": _gemma,
    "unigram": _unigram,
}


@pytest.fixture(scope="session")
def byte_level() -> ModelCard:
    return card_of(_trained_byte_level())


@pytest.fixture(scope="session")
def llama() -> ModelCard:
    return card_of(_llama())


@pytest.fixture(scope="session", params=KINDS)
def any_kind(request: pytest.FixtureRequest) -> ModelCard:
    return card_of(KINDS[request.param]())


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [*CORPUS, "".join(CORPUS), "\n".join(reversed(CORPUS))]


@pytest.fixture(scope="session")
def planes() -> dict[int, str]:
    """A text of random code points, assigned or not, for each of Unicode's planes."""
    draw = random.Random(17)
    texts = {}
    for plane in range(17):
        points = [draw.randrange(0x10000 * plane, 0x10000 * (plane + 1)) for _ in range(2000)]
        texts[plane] = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    return texts
