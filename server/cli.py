"""The command line: serve, chat, generate, plan, verify, replay, bench, version."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from importlib.metadata import version

import uvloop

from server import config
from server.bench import main as bench
from server.console import chat, generate
from server.console.talk import TalkOptions
from server.engine.child import Child
from server.engine.ranks import follow, place_of
from server.exactness import replay, verify

_DESCRIPTION = "An inference server for decoder-only text generators: small enough to read, exact by default."


def main() -> int:
    """Runs the command that the arguments name; the result is the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except config.OptionError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace", description=_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=run)
        return added

    serving = command("serve", "Serve a model over HTTP, with an OpenAI-compatible API.", _serve)
    config.add_arguments(serving, config.ServeOptions)
    chatting = command("chat", "Talk with a model in the terminal.", _chat)
    config.add_arguments(chatting, TalkOptions)
    generating = command("generate", "Continue a text, streamed to the terminal.", _generate)
    generating.add_argument("prompt", help="the text to continue; - reads standard input")
    config.add_arguments(generating, TalkOptions)
    planning = command("plan", "Show what a model would take of this machine's memory, without loading it.", _plan)
    planning.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="as --model")
    config.add_arguments(planning, config.EngineOptions)
    verifying = command("verify", verify.DESCRIPTION, _verify)
    verifying.epilog, verifying.formatter_class = verify.EPILOG, argparse.RawDescriptionHelpFormatter
    verifying.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="as --model")
    config.add_arguments(verifying, config.ModelOptions)
    replaying = command("replay", replay.DESCRIPTION, _replay)
    replaying.epilog, replaying.formatter_class = replay.EPILOG, argparse.RawDescriptionHelpFormatter
    replaying.add_argument("file", help="what `headrace serve --record` has written")
    replaying.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="as --model")
    config.add_arguments(replaying, replay.ReplayOptions)
    bench.add_arguments(command("bench", "Measure an OpenAI-compatible server under load.", bench.run))
    command("version", "Print the version.", _version)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    options = config.read(config.ServeOptions, arguments)
    if place_of(options.tensor_parallel).rank > 0:  # the same command runs on every rank
        return follow()
    first = Child() if options.ray is None else None  # the engine imports torch while this process imports what serves
    from server.serve import serve

    return serve(options, first=first)


def _chat(arguments: argparse.Namespace) -> int:
    return _run(chat.chat(config.read(TalkOptions, arguments)))


def _generate(arguments: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    return _run(generate.generate(prompt, config.read(TalkOptions, arguments)))


def _plan(arguments: argparse.Namespace) -> int:
    from server.console.plan import plan  # loads torch, which the other commands leave to the engine

    return plan(config.read(config.EngineOptions, arguments))


def _verify(arguments: argparse.Namespace) -> int:
    return _run(verify.verify(config.read(config.ModelOptions, arguments)))


def _replay(arguments: argparse.Namespace) -> int:
    options = config.read(replay.ReplayOptions, arguments)
    if options.url is not None:
        for option in config.options_of(config.EngineOptions):
            if hasattr(arguments, option.name):
                raise config.OptionError(f"{option.flag}: the server at --url was started without this command")
    return _run(replay.replay(arguments.file, options))


def _version(_: argparse.Namespace) -> int:
    print(f"headrace {version('headrace')}")
    return 0


def _run(work: Coroutine[object, object, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


if __name__ == "__main__":
    sys.exit(main())
