"""Is a conversation rendered as transformers does it, and a hostile template kept within its limits?"""

import asyncio
import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.errors import BadRequest
from server.text.chat_template import MESSAGE_CHARACTERS, ChatTemplate
from server.text.renderer import Render

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = """{{ bos_token }}
{%- set ns = namespace(turns=0) %}
{% for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {% if message.role == 'user' %}
[INST] {{ message.content | trim }} [/INST]
    {% else %}
        {% generation %}
 {{ message.content }}{{ eos_token }}
        {% endgeneration %}
    {% endif %}
{% endfor %}
{{ ns.turns }} turns
"""
FEATURES = """{{ messages | tojson(indent=2) }} {{ strftime_now('%Y') | length }} {{ '<é>' | tojson }}
{% for number in range(9) %}{% if number == 2 %}{% continue %}{% elif number == 5 %}{% break %}{% endif %}{{ number }}
{% endfor %}{{ tools is none }} {{ undefined_name }} {{ dict(a=1).a }} {{ messages[0].get('name', 'nobody') }}
{% macro shout(text) %}{{ text | upper }}{% endmacro %}{{ shout(messages[0].content) }}
"""
CONVERSATION: list[dict[str, object]] = [
    {"role": "user", "content": " Hello, {{ 7 * 7 }} <|im_start|> é 👩‍🚀 \n\n"},
    {"role": "assistant", "content": "{% for x in y %} & <b>"},
    {"role": "user", "content": "Bye"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@contextlib.contextmanager
def rendering(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, TOKENS)
    try:
        yield template
    finally:
        template.close()


@pytest.mark.parametrize("source", [CHATML, ALTERNATING, FEATURES])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
async def test_it_renders_what_transformers_renders(source: str, add_generation_prompt: bool) -> None:
    expected, _ = render_jinja_template(
        [CONVERSATION], chat_template=source, add_generation_prompt=add_generation_prompt, **TOKENS
    )
    with rendering(source) as template:
        assert await template.render(Render(CONVERSATION, add_generation_prompt)) == expected[0]


async def test_message_contents_are_no_templates() -> None:
    content = "{{ 7 * 7 }}{% raw %}{{ ''.__class__.__mro__ }}{% for i in range(10**9) %}{{ 'a' * 10**9 }}"
    with rendering("{{ messages[0].content }}") as template:
        assert await template.render(Render([{"role": "user", "content": content}])) == content


async def test_a_templates_refusal_is_the_clients_error_in_the_templates_words() -> None:
    with rendering(ALTERNATING) as template, pytest.raises(BadRequest) as caught:
        await template.render(Render([{"role": "assistant", "content": "me first"}]))
    assert caught.value.message == "Conversation roles must alternate user/assistant/user/assistant/..."
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_value")


async def test_a_refusal_is_shortened_to_one_clean_line() -> None:
    source = "{{ raise_exception('bad\x1b[31m\n' + messages[0].content) }}"
    with rendering(source) as template, pytest.raises(BadRequest) as caught:
        await template.render(Render([{"role": "user", "content": "x" * 5000}]))
    assert caught.value.message.startswith("bad [31m xxx")
    assert len(caught.value.message) == MESSAGE_CHARACTERS


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'a }}", "{% nonsense %}", "{{ x | no_such_filter }}"])
def test_a_template_that_is_none_is_an_error_at_load(source: str) -> None:
    with pytest.raises(ValueError, match=r"^chat template: \S"):
        ChatTemplate(source, TOKENS)


HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "attr filter": "{{ (''|attr('__class__')).mro() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "type": "{{ dict.__subclasses__() }}",
    "change": "{{ messages.append(1) }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "string": "{{ 'a' * 10**9 }}",
    "string of content": "{{ messages[0].content * 10**9 }}",
    "number": "{{ 10 ** (10 ** 9) }}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "nesting": "{% set n = namespace(x=[]) %}{% for i in range(99) %}{% set n.x = [n.x] * 2 %}{% endfor %}{{ n.x }}",
    "centre": "{{ 'a' | center(10**9) }}",
    "padding": "{{ '%1000000000d' % 1 }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
}


def cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


@pytest.mark.parametrize("attack", HOSTILE)
async def test_a_hostile_template_is_refused_at_little_cost(attack: str) -> None:
    start = cpu_seconds()
    with pytest.raises((BadRequest, ValueError)) as caught, rendering(HOSTILE[attack]) as template:
        await template.render(Render([{"role": "user", "content": "x"}]))
    assert cpu_seconds() - start < 1.5  # half a second for starting the renderer, half for the template
    if isinstance(caught.value, ValueError):  # constants are computed while compiling
        assert str(caught.value).startswith("chat template: ")


def test_hostile_templates_take_little_memory() -> None:
    """In a process of its own, whose children are renderers and nothing else."""
    program = """
import asyncio, pathlib, re, resource, sys
from server.errors import BadRequest
from server.text.chat_template import ChatTemplate
from server.text.renderer import Render
for source in sys.argv[1:]:
    try:
        template = ChatTemplate(source, {})
        asyncio.run(template.render(Render([{"role": "user", "content": "x"}])))
        template.close()
    except (BadRequest, ValueError):
        pass
ours = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(ours, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    greedy = [HOSTILE[name] for name in ("string", "number", "doubling", "output", "centre", "padding")]
    run = subprocess.run([sys.executable, "-P", "-c", program, *greedy], capture_output=True, text=True, check=True)
    ours_kib, renderers_kib = map(int, run.stdout.split())
    assert ours_kib < 100 * 1024
    assert renderers_kib < 80 * 1024  # about 20 of them to start with


async def test_a_renderer_that_died_of_one_conversation_serves_the_next() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with rendering("{% if messages[0].content == 'loop' %}" + loops + "{% endif %}fine") as template:
        with pytest.raises(BadRequest, match="cannot render"):
            await template.render(Render([{"role": "user", "content": "loop"}]))
        assert await template.render(Render([{"role": "user", "content": "do not"}])) == "fine"


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"role": "user", "content": None}], [{}]])
async def test_messages_the_template_was_not_written_for_are_the_clients_error(
    messages: list[dict[str, object]],
) -> None:
    with rendering("{{ messages[0]['content'] + '!' }}") as template, pytest.raises(BadRequest) as caught:
        await template.render(Render(messages))
    assert caught.value.message == "The model's chat template cannot render these messages."


async def test_long_conversations_and_many_at_once_are_rendered() -> None:
    with rendering(CHATML) as template:
        long: list[dict[str, object]] = [{"role": "user", "content": "long 👩‍🚀 " * 200_000} for _ in range(4)]
        assert (await template.render(Render(long))).count("👩‍🚀") == 800_000
        widened = "a" * (8 << 20) + "👩"  # one character makes each of the others take four bytes
        assert widened in await template.render(Render([{"role": "user", "content": widened}]))
        many = [[{"role": "user", "content": f"number {number}"}] for number in range(50)]
        rendered = await asyncio.gather(*(template.render(Render(messages)) for messages in many))
        assert [f"number {number}<" in text for number, text in enumerate(rendered)] == [True] * 50
