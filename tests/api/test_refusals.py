"""What is wrong with a body is told even where nobody has found words for it."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from server.api.refusals import refusal


class Wordless(BaseModel):
    """Pydantic has kinds of findings that none of our bodies can cause yet: these two."""

    pages: Annotated[int, Field(multiple_of=4)] = 4
    day: Annotated[str, Field(pattern="^[a-z]+$")] = "monday"


@pytest.mark.parametrize(("raw", "param"), [(b'{"pages": 6}', "pages"), (b'{"day": "8"}', "day")])
def test_a_finding_without_words_is_a_refusal_and_no_fault(raw: bytes, param: str) -> None:
    with pytest.raises(ValidationError) as found:
        Wordless.model_validate_json(raw)
    told = refusal(found.value, raw)
    assert (told.status, told.code, told.param) == (400, "invalid_value", param)
    assert f"'{param}'" in str(told)
