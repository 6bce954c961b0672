"""How a fault of the chat request that another dialect's means is told in the names that the client has used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from server.api.refusals import refusal
from server.errors import BadRequest


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Raises BadRequest for what is wrong within; `names` has chat's fields under the client's, the longer first."""
    try:
        yield
    except ValidationError as error:
        raise _rename(refusal(error, b""), names) from None
    except BadRequest as error:
        raise _rename(error, names) from None


def _rename(error: BadRequest, names: Mapping[str, str]) -> BadRequest:
    for chats, clients in names.items():
        if error.param is not None and _is_within(error.param, chats):
            # One message more or less may stand before: its number would mislead.
            name = clients if chats == "messages" else clients + error.param.removeprefix(chats)
            error.message = error.message.replace(f"'{error.param}'", f"'{name}'")
            error.param = name
            break
    return error


def _is_within(param: str, field: str) -> bool:
    return param == field or param.startswith((f"{field}.", f"{field}["))
