"""The items of a response: how each begins, grows and ends, told as events, and what there is of it."""

import secrets
from collections.abc import Iterator
from typing import Any, Literal

from server.api.choices import described
from server.generator import TokenText

Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class Spoken:
    """A message, or the reasoning before it. Either has one part, a text."""

    def __init__(self, place: int, kind: Literal["message", "reasoning"]) -> None:
        is_message = kind == "message"
        self._part_kind = "output_text" if is_message else "reasoning_text"
        self._more: dict[str, Any] = {"role": "assistant"} if is_message else {"summary": []}
        self._has_logprobs = is_message
        self.kind = kind
        self._id = f"{'msg' if is_message else 'rs'}_{secrets.token_hex(12)}"
        self._status: Status = "in_progress"
        self._place = {"output_index": place}
        self._owner = {"item_id": self._id, **self._place, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> Iterator[Event]:
        yield {"type": "response.output_item.added", **self._place, "item": self.fields() | {"content": []}}
        yield {"type": "response.content_part.added", **self._owner, "part": self._part()}

    def grow(self, text: str, tokens: list[TokenText]) -> Iterator[Event]:
        """`tokens` are those whose log probabilities are told, of a message."""
        self._texts.append(text)
        more: dict[str, Any] = {}
        if self._has_logprobs:
            more["logprobs"] = described(tokens)
            self._logprobs += more["logprobs"]
        yield {"type": f"response.{self._part_kind}.delta", **self._owner, "delta": text, **more}

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        part = self._part()
        said = {key: value for key, value in part.items() if key in ("text", "logprobs")}
        yield {"type": f"response.{self._part_kind}.done", **self._owner, **said}
        yield {"type": "response.content_part.done", **self._owner, "part": part}
        yield {"type": "response.output_item.done", **self._place, "item": self.fields()}

    def fields(self) -> dict[str, Any]:
        """The item as it stands."""
        head = {"id": self._id, "type": self.kind, "status": self._status, **self._more}
        return {**head, "content": [self._part()]}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._part_kind, "text": "".join(self._texts)}
        return {**part, "annotations": [], "logprobs": [*self._logprobs]} if self._has_logprobs else part


class Call:
    """A function that is to be called."""

    def __init__(self, place: int, call_id: str, name: str) -> None:
        self._id = f"fc_{secrets.token_hex(12)}"
        self._call_id = call_id
        self._name = name
        self._status: Status = "in_progress"
        self._place = {"output_index": place}
        self._owner = {"item_id": self._id, **self._place}
        self._arguments: list[str] = []

    def begin(self) -> Iterator[Event]:
        yield {"type": "response.output_item.added", **self._place, "item": self.fields()}

    def grow(self, arguments: str) -> Iterator[Event]:
        self._arguments.append(arguments)
        yield {"type": "response.function_call_arguments.delta", **self._owner, "delta": arguments}

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        fields = self.fields()
        said = {"name": self._name, "arguments": fields["arguments"]}
        yield {"type": "response.function_call_arguments.done", **self._owner, **said}
        yield {"type": "response.output_item.done", **self._place, "item": fields}

    def fields(self) -> dict[str, Any]:
        """The item as it stands."""
        called = {"call_id": self._call_id, "name": self._name, "arguments": "".join(self._arguments)}
        return {"id": self._id, "type": "function_call", "status": self._status, **called}
