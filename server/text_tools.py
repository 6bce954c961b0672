"""The text side of one model, loaded together: its tokenizer, its prompts, its generator."""

from dataclasses import dataclass

from server.engine.interface import Engine
from server.engine.messages import ModelCard
from server.generator import Generator
from server.grammar.grammars import Grammars
from server.text.chat_template import ChatTemplate
from server.text.prompts import Prompts
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextTools:
    tokenizer: Tokenizer
    prompts: Prompts
    generator: Generator
    grammars: Grammars


def load_text(card: ModelCard, engine: Engine) -> TextTools:
    """May take a second or two for a large vocabulary: call it off the event loop. Raises ValueError in one line."""
    tokenizer = Tokenizer(card)
    template = None if card.chat_template is None else ChatTemplate(card.chat_template, card.special_tokens)
    generator = Generator(engine, tokenizer, card.eos_ids)
    return TextTools(tokenizer, Prompts(tokenizer, template), generator, Grammars(tokenizer, card.eos_ids))
