"""How a conversation becomes the text that the model was trained to continue: the checkpoint's Jinja2 template."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import weakref

import msgspec

from server.errors import BadRequest
from server.logs import Log
from server.text.renderer import Answer, Compile, Compiled, Failed, Refused, Render, Rendered, read_frame, write_frame

MESSAGE_CHARACTERS = 200  # of what a template says, shown to the client

log = Log(__name__)


def _shorten(message: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= MESSAGE_CHARACTERS else line[: MESSAGE_CHARACTERS - 1] + "…"


class _Renderer:
    """One renderer process. It ends with its input: at worst it first uses up its time for one conversation."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "server.text.renderer"]  # -P: nothing is imported from where we stand
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._orders, self._answers = process, process.stdin, process.stdout
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self.close = weakref.finalize(self, self._end, process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(BrokenPipeError), process:  # leaving the block closes the pipes and waits
            pass

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, order: bytes) -> Answer:
        """Failed, and no longer running, if the process died of it."""
        try:
            write_frame(self._orders, order)
            answer = read_frame(self._answers)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return self._decoder.decode(answer)
        self.close()
        return Failed("it takes too much time or memory")


class ChatTemplate:
    """Renders in a process of its own (see `renderer.py`), which is started again if it dies of a conversation."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Waits until it is compiled, so do this off the event loop; raises ValueError in one line if it cannot be."""
        self.source = source
        self.variables: frozenset[str] = frozenset()  # that it reads
        self._compile = msgspec.msgpack.encode(Compile(source, special_tokens))
        self._turn = threading.Lock()  # one conversation at a time; each takes well under a millisecond
        self._renderer = self._start_renderer()

    async def render(self, order: Render) -> str:
        """Message contents are data and never parsed as a template.

        Raises BadRequest in the template's own words where it refuses, UnicodeEncodeError for lone surrogates.
        """
        match await asyncio.to_thread(self._ask, msgspec.msgpack.encode(order)):
            case Rendered(text):
                return text
            case Refused(message):
                raise BadRequest(_shorten(message), param="messages", code="invalid_value")
            case answer:
                log.debug("chat template failed", reason=answer.reason if isinstance(answer, Failed) else "no text")
                explanation = "The model's chat template cannot render these messages."
                raise BadRequest(explanation, param="messages", code="invalid_value")

    def sample(self, order: Render) -> str | None:
        """What the template makes of an order of ours; None if it takes no such thing. Waits for the renderer."""
        answer = self._ask(msgspec.msgpack.encode(order))
        return answer.text if isinstance(answer, Rendered) else None

    def close(self) -> None:
        """Ends the renderer; a later `render` would start another."""
        with self._turn:
            self._renderer.close()

    def _ask(self, order: bytes) -> Answer:
        with self._turn:
            if not self._renderer.is_running:
                self._renderer.close()
                self._renderer = self._start_renderer()
            return self._renderer.ask(order)

    def _start_renderer(self) -> _Renderer:
        renderer = _Renderer()
        match renderer.ask(self._compile):
            case Compiled(variables):
                self.variables = variables
                return renderer
            case Refused(reason) | Failed(reason):
                renderer.close()
                raise ValueError(f"chat template: {_shorten(reason)}")
            case Rendered():
                raise AssertionError("nothing was to be rendered")
