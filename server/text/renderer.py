"""The process that renders a chat template: a program out of a checkpoint, so it runs apart and within limits.

Nothing inside Python can bound what a template costs: `{{ 'a' * 10**9 }}` is one operation, and constant expressions
are computed while compiling. So the kernel keeps the limits here, and the server outlives whatever it meets.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

import jinja2
import jinja2.meta
import msgspec
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_SECONDS = 0.5  # for one conversation; processor time, so that a busy machine is no reason to fail
MEMORY_BYTES = 56 << 20  # of which the interpreter takes 13
MEMORY_PER_BYTE = 32  # more for each byte of the conversation: a character may take four, and is copied a few times
TEXT_BYTES = 1 << 20
TEXT_PER_BYTE = 4


class Compile(msgspec.Struct, frozen=True, tag=True):
    """The first order: answered by Compiled or Failed."""

    source: str
    special_tokens: dict[str, str]


class Render(msgspec.Struct, frozen=True, tag=True):
    messages: list[dict[str, object]]
    add_generation_prompt: bool = True
    tools: list[dict[str, object]] | None = None
    variables: dict[str, bool | int | float | str] = {}
    is_continued: bool = False  # the last message goes on; templates may read it


class Compiled(msgspec.Struct, frozen=True, tag=True):
    variables: frozenset[str]  # that the template reads, those it is always given among them


class Rendered(msgspec.Struct, frozen=True, tag=True):
    text: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The template called raise_exception: these are its own words."""

    message: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The template met something that it was not written for, or a limit."""

    reason: str


Answer = Compiled | Rendered | Refused | Failed


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """None where the other side is gone."""
    header = stream.read(4)
    body = stream.read(int.from_bytes(header, "big"))
    return body if len(header) == 4 and len(body) == int.from_bytes(header, "big") else None


class _Refusal(Exception):
    pass


class _Generation(Extension):
    """`{% generation %}` marks the assistant's turns for training; here it only stands around them."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_dict(*args: Any, **items: Any) -> dict[Any, Any]:
    return dict(*args, **items)  # in place of the type itself, whose methods would reach past the sandbox's checks


class _Namespace(Namespace):
    """jinja2's, without the names that Python itself looks up on objects."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _new_namespace(*args: Any, **items: Any) -> _Namespace:
    namespace = _Namespace()
    for name, value in dict(*args, **items).items():
        namespace[name] = value
    return namespace


def compile_template(order: Compile) -> tuple[jinja2.Template, frozenset[str]]:
    """As `transformers` compiles chat templates, which are written and tested against it; and what they read."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes for HTML
    environment.globals |= {"dict": _new_dict, "namespace": _new_namespace}
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    template = environment.from_string(order.source, globals=dict(order.special_tokens))
    return template, frozenset(jinja2.meta.find_undeclared_variables(environment.parse(order.source)))


def _render(template: jinja2.Template, order: Render, limit: int) -> Answer:
    try:
        text = template.render(
            **order.variables,
            messages=order.messages,
            add_generation_prompt=order.add_generation_prompt,
            tools=order.tools,
            documents=None,
        )
    except _Refusal as refusal:
        return Refused(str(refusal)[:1024])
    return Rendered(text) if len(text) <= limit else Failed(f"it renders to {len(text)} characters")


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """For an order of so many bytes. Passing the time ends the process; the memory raises MemoryError or ends it."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = MEMORY_BYTES + MEMORY_PER_BYTE * size
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Compiles the first frame's template, then renders a conversation per frame until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end closes our input
    decoder = msgspec.msgpack.Decoder(Compile | Render)
    template = jinja2.Template("")
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        answer: Answer = Rendered("")
        with _limits(len(frame)):
            try:
                match decoder.decode(frame):
                    case Compile() as order:
                        template, variables = compile_template(order)
                        answer = Compiled(variables)
                    case Render() as order:
                        answer = _render(template, order, TEXT_BYTES + TEXT_PER_BYTE * len(frame))
            except Exception as error:  # a template can raise whatever Python can
                answer = Failed(f"{type(error).__name__}: {error}"[:1024])
            write_frame(sys.stdout.buffer, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
