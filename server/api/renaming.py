"""How what is told of the chat request that another dialect's means is told in the names that the client has used."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pydantic import ValidationError

from server.api.exchange import Job
from server.api.refusals import refusal
from server.errors import BadRequest

Names = Mapping[str, str]  # patterns of chat's fields to the client's, the longer first


@contextmanager
def renamed(names: Names) -> Iterator[None]:
    """Raises BadRequest for what is wrong within."""
    try:
        yield
    except ValidationError as error:
        raise _told(refusal(error, b""), names) from None
    except BadRequest as error:
        raise _told(error, names) from None


def with_ignored_renamed(job: Job, names: Names) -> Job:
    return replace(job, ignored=[_rename(name, names) for name in job.ignored])


def _told(error: BadRequest, names: Names) -> BadRequest:
    if error.param is not None:
        name = _rename(error.param, names)
        error.message = error.message.replace(f"'{error.param}", f"'{name}")
        error.param = name
    return error


def _rename(field: str, names: Names) -> str:
    for chats, clients in names.items():
        name, count = re.subn(rf"^{chats}(?=[.\[]|$)", clients, field)
        if count:
            return name
    return field
