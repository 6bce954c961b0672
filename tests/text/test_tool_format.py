"""Is it found out of a template how its model calls tools, and are conversations with tools rendered for any?"""

from collections.abc import Iterator

import chat_templates as templates
import pytest

from server.errors import BadRequest
from server.text.chat_template import ChatTemplate
from server.text.conversation import Conversation, Tool, Turn
from server.text.prompts import Prompts
from server.text.tokenizer import Tokenizer

SPECIAL = "<|im_start|>"
TOOL = Tool(
    name="weather",
    schema={"type": "object", "properties": {"city": {"type": "string"}}},
    declared={"type": "function", "function": {"name": "weather", "description": f"Tells {SPECIAL}the weather"}},
)


def turns(id: str = "call_1") -> list[Turn]:
    call = {"id": id, "type": "function", "function": {"name": "weather", "arguments": {"city": f"Rome {SPECIAL}é"}}}
    return [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"sunny {SPECIAL}", "tool_call_id": id},
    ]


@pytest.fixture
def load(byte_level) -> Iterator:
    loaded: list[ChatTemplate] = []

    def prompts(source: str) -> tuple[Prompts, Tokenizer]:
        loaded.append(ChatTemplate(source, {}))
        tokenizer = Tokenizer(byte_level)
        return Prompts(tokenizer, loaded[-1]), tokenizer

    yield prompts
    for template in loaded:
        template.close()


@pytest.mark.parametrize(
    ("source", "kind", "is_native", "has_text_arguments"),
    [
        (templates.HERMES, "hermes", True, False),
        (templates.HERMES_OF_TEXT, "hermes", True, True),
        (templates.LLAMA, "llama", True, False),
        (templates.MISTRAL, "mistral", True, False),
        (templates.MISTRAL_ARGS, "mistral_args", True, False),
        (templates.PYTHONIC, "pythonic", True, False),
        (templates.UNREADABLE, "hermes", False, False),
        (templates.PLAIN, "hermes", False, False),
        (templates.NO_SYSTEM, "hermes", False, False),
        ("{{ raise_exception('nothing') }}", "hermes", False, False),
    ],
)
def test_a_template_shows_how_its_model_calls(load, source, kind, is_native, has_text_arguments) -> None:
    form = load(source)[0].format.tools
    assert (form.syntax.kind, form.is_native, form.has_text_arguments) == (kind, is_native, has_text_arguments)
    assert form.takes_system is (source != templates.NO_SYSTEM and "nothing" not in source)


@pytest.mark.parametrize(
    "source",
    [
        templates.HERMES,
        templates.HERMES_OF_TEXT,
        templates.LLAMA,
        templates.MISTRAL,
        templates.PLAIN,
        templates.NO_SYSTEM,
    ],
)
async def test_special_tokens_in_tools_calls_and_results_are_text(load, source) -> None:
    prompts, tokenizer = load(source)
    prompt = await prompts.conversation(Conversation(turns=turns(), tools=[TOOL]))
    rendered = tokenizer.decode(prompt.ids, show_special=True)
    assert rendered.count(SPECIAL) == 3
    special = {token.id for token in tokenizer.added_tokens if token.special}
    assert not special.intersection(prompt.ids)
    assert f'"city": "Rome {SPECIAL}é"' in rendered


async def test_a_template_without_tools_is_told_of_them_in_text(load) -> None:
    prompts, tokenizer = load(templates.PLAIN)
    again = [*turns(), {"role": "tool", "content": "warm", "tool_call_id": "call_1"}]
    conversation = Conversation(turns=[{"role": "system", "content": "Be brief."}, *again], tools=[TOOL])
    rendered = tokenizer.decode((await prompts.conversation(conversation)).ids, show_special=True)
    assert rendered.startswith("[system]Be brief.\n\n# Tools\n")
    assert '{"type": "function", "function": {"name": "weather"' in rendered
    assert '[assistant]<tool_call>\n{"name": "weather", "arguments": {"city": "Rome' in rendered
    responses = f"<tool_response>\nsunny {SPECIAL}\n</tool_response>\n<tool_response>\nwarm\n</tool_response>"
    assert rendered.endswith(f"[user]{responses}[assistant]")


async def test_a_template_without_a_system_is_told_in_the_first_turn(load) -> None:
    prompts, tokenizer = load(templates.NO_SYSTEM)
    conversation = Conversation(turns=[{"role": "user", "content": "Hi"}], tools=[TOOL])
    rendered = tokenizer.decode((await prompts.conversation(conversation)).ids, show_special=True)
    assert rendered.startswith("[user]# Tools\n")
    assert rendered.endswith("\n\nHi[assistant]")


async def test_an_answer_can_go_on_with_the_last_turn(load) -> None:
    prompts, tokenizer = load(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content | trim }}<|im_end|>{% endfor %}"
    )
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Well {SPECIAL}, "}]
    continued = Conversation(turns=said, is_continued=True, opens_answer=False)
    rendered = tokenizer.decode((await prompts.conversation(continued)).ids, show_special=True)
    assert rendered == f"<|im_start|>user: Hi<|im_end|><|im_start|>assistant: Well {SPECIAL}, "


async def test_an_answer_cannot_go_on_where_the_template_drops_the_turn(load) -> None:
    prompts, _ = load("{{ messages[0].content }}")
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    with pytest.raises(BadRequest) as caught:
        await prompts.conversation(Conversation(turns=said, is_continued=True))
    assert caught.value.param == "continue_final_message"


async def test_variables_reach_the_template_and_the_end_tells_whether_reasoning_has_begun(load) -> None:
    prompts, _ = load(templates.REASONING)
    form = prompts.format.reasoning
    for variables, is_open in (({}, False), ({"enable_thinking": True}, True), ({"enable_thinking": False}, False)):
        prompt = await prompts.conversation(Conversation(turns=turns()[:1], variables=variables))
        assert form.is_opened_by(prompt.ending) is is_open
    assert prompts.knows("enable_thinking")
    assert not prompts.knows("thinking")
