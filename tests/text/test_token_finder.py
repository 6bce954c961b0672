"""Are tokens found in a text as the library finds them, in linear time?"""

import random
import time

from server.text.token_finder import TokenFinder


def found_naively(names: list[str], text: str) -> list[str]:
    found, place = [], 0
    while place < len(text):
        here = [name for name in names if text.startswith(name, place)]
        found += [max(here, key=len)] if here else []
        place += len(found[-1]) if here else 1
    return found


def test_it_finds_the_leftmost_and_of_those_the_longest() -> None:
    draw = random.Random(11)
    for _ in range(5_000):
        names = list({"".join(draw.choices("ab|", k=draw.randrange(1, 6))) for _ in range(draw.randrange(0, 6))})
        text = "".join(draw.choices("ab|c", k=draw.randrange(0, 30)))
        found: list[str] = []
        replaced = TokenFinder(names).replace(text, lambda name, found=found: found.append(name) or f"[{name}]")
        assert found == found_naively(names, text)
        assert replaced.replace("[", "").replace("]", "") == text
        assert TokenFinder(names).is_in(text) == bool(found)


def test_a_name_across_the_border_of_two_windows_is_found_whole() -> None:
    finder = TokenFinder(["<|a|>", "<|a|>b"])
    for length in range(2**16 - 8, 2**16 + 2):
        assert finder.replace("x" * length + "<|a|>bc", lambda name: f"({name})") == "x" * length + "(<|a|>b)c"


def test_thousands_of_names_and_a_text_full_of_beginnings_take_linear_time() -> None:
    finder = TokenFinder([f"<unused{number}>" for number in range(6000)])
    start = time.monotonic()
    assert not finder.is_in("<" * 500_000 + "<unused" * 50_000)
    assert time.monotonic() - start < 1.0
