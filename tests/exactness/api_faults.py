"""One detail of what stands between HTTP and the engine wrong, planted at the seam where such a fault would lie."""

from dataclasses import replace

import pytest

import server.text.stop_strings as stop_strings_room
from server.engine.client import EngineClient
from server.engine.streams import Order, TokenStream
from server.text.conversation import ChatPrompt, Conversation
from server.text.detokenizer import Detokenizer
from server.text.prompts import Prompts
from server.text.stop_strings import StopStrings
from server.text.tokenizer import Tokenizer

Patch = pytest.MonkeyPatch


def every_token_is_decoded_on_its_own(patch: Patch) -> None:
    def feed(self: Detokenizer, token: int) -> str:
        return self._token_bytes[token].decode(errors="replace")

    patch.setattr(Detokenizer, "feed", feed)


def the_end_of_a_text_that_breaks_off_is_lost(patch: Patch) -> None:
    patch.setattr(Detokenizer, "flush", lambda self: "")


def seeds_hang_on_how_many_choices_there_are(patch: Patch) -> None:
    plain = EngineClient.submit

    def submit(self: EngineClient, orders: list[Order]) -> list[TokenStream]:
        seeds = [order.sampling.seed + len(orders) for order in orders]
        return plain(
            self,
            [
                replace(order, sampling=replace(order.sampling, seed=seed))
                for order, seed in zip(orders, seeds, strict=True)
            ],
        )

    patch.setattr(EngineClient, "submit", submit)


def a_stop_string_that_begins_within_its_own_beginning_is_missed(patch: Patch) -> None:
    patch.setattr(stop_strings_room, "_fallbacks", lambda pattern: [0] * len(pattern))


def half_a_stop_string_is_streamed(patch: Patch) -> None:
    plain = StopStrings.feed

    def feed(self: StopStrings, text: str) -> str:
        certain = plain(self, text)
        held, self._held = self._held, ""
        return certain + held

    patch.setattr(StopStrings, "feed", feed)


def text_is_encoded_with_one_token_more(patch: Patch) -> None:
    plain = Tokenizer.encode

    async def encode(self: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        return [*await plain(self, text, add_special_tokens=add_special_tokens), *([0] if add_special_tokens else [])]

    patch.setattr(Tokenizer, "encode", encode)


def a_chat_is_rendered_with_one_token_more(patch: Patch) -> None:
    plain = Prompts.conversation

    async def conversation(self: Prompts, asked: Conversation) -> ChatPrompt:
        prompt = await plain(self, asked)
        return replace(prompt, ids=[*prompt.ids, 0])

    patch.setattr(Prompts, "conversation", conversation)
