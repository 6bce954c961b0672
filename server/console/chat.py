"""`headrace chat`: a conversation in the terminal."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator

from server.console.running import EngineFailed, complain
from server.console.talk import Talk, TalkOptions, opened
from server.errors import HeadraceError

_HELP = """\
  /reset          start over
  /system TEXT    start over with this system message
  /help           this list
  /quit           leave (so does Ctrl-D)
A line that ends in a backslash goes on in the next. Ctrl-C stops an answer."""

Message = dict[str, object]


async def chat(options: TalkOptions) -> int:
    """Asks and answers until the input ends; the exit code."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # editing and history for input()
    try:
        async with opened(options) as talk:
            await Conversation(talk).run()
    except EngineFailed as error:
        return complain(error)
    return 0


class Conversation:
    """What was said so far, and the loop that adds to it."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.messages: list[Message] = []
        self._reset(talk.options.system)

    async def run(self) -> None:
        if sys.stdin.isatty():
            assert self.talk.engine.card is not None, "opened"
            print(f"{self.talk.engine.card.name}. /help lists the commands.")
        while (line := _ask()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line.strip():
                await self._turn(line)

    def _command(self, line: str) -> bool:
        """Whether to go on."""
        name, _, argument = line.partition(" ")
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self._reset(self.talk.options.system)
            case "/system":
                self._reset(argument.strip() or None)
            case "/help":
                print(_HELP)
            case _:
                print(f"{name} is not a command; /help lists them")
        return True

    def _reset(self, system: str | None) -> None:
        self.messages = [{"role": "system", "content": system}] if system else []

    async def _turn(self, question: str) -> None:
        """One question and its answer; a question that fails leaves the conversation as it was."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        try:
            ids = await self.talk.tools.prompts.chat(asked)
            answer = await self._print_answer(ids)
        except HeadraceError as error:
            print(f"{error.message} (/reset starts over)")
            return
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    async def _print_answer(self, ids: list[int]) -> str:
        """Prints as it comes. Ctrl-C ends the answer, not the conversation; what was said stays said."""
        texts: list[str] = []
        start = time.monotonic()

        async def show() -> None:
            async with contextlib.aclosing(self.talk.answer(ids, "messages")) as pieces:
                async for text in pieces:
                    texts.append(text)
                    sys.stdout.write(text)
                    sys.stdout.flush()

        showing = asyncio.create_task(show())
        with _interrupting(showing), contextlib.suppress(asyncio.CancelledError):
            await showing
        print(f"\n[{time.monotonic() - start:.1f} s]" if sys.stdout.isatty() else "")
        return "".join(texts)


@contextlib.contextmanager
def _interrupting(task: asyncio.Task[None]) -> Iterator[None]:
    """Makes Ctrl-C cancel the task instead of ending the program."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _ask() -> str | None:
    """The next question; None at the end of the input. Blocks: nothing else goes on between two turns."""
    lines: list[str] = []
    prompt = "> " if sys.stdin.isatty() else ""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C leaves input() at once
    try:
        while True:
            line = input(prompt)
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = ". " if prompt else ""
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    finally:
        signal.signal(signal.SIGINT, previous)
