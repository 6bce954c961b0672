"""Objects that their `type` tells apart: which model reads which, and how a type that no model reads is refused."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator

from server.api.refusals import OTHER, custom
from server.api.schemas import Strict
from server.errors import shown


def _refuse(kind: str) -> str:
    raise custom("unsupported_value", f"Unsupported value: type '{shown(kind)}' is not supported.")


class Other(Strict):
    """The branch of a union for every type that has no model."""

    type: Annotated[str, AfterValidator(_refuse)]


def by_type(kinds: Iterable[str], default: str) -> Callable[[Any], str]:
    """Tells a union's branch from an object's `type`; what has none is told as `default`, and refused as that."""
    known = frozenset(kinds)

    def branch(value: Any) -> str:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        kind = default if kind is None else kind
        return f"~{kind}" if isinstance(kind, str) and kind in known else OTHER

    return branch
