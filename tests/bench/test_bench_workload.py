"""What is asked follows from the options and the seed alone."""

import random
import re
from pathlib import Path

import pytest

from server.bench.workload import Entry, Lengths, Material, Workload, read_entries

IDS = Material(ids=tuple(range(1000, 2000)))


def workload(**changes: object) -> Workload:
    return Workload(**{"prompt": Lengths(20, 20), "output": Lengths(8, 8)} | changes)  # type: ignore[arg-type]


def test_id_prompts_have_exactly_the_length_asked_for() -> None:
    questions = workload(prompt=Lengths(5, 9)).questions(200, IDS, "a")
    assert {len(question.prompt) for question in questions} == {5, 6, 7, 8, 9}
    assert all(1000 <= token < 2000 for question in questions for token in question.prompt)


def test_lengths_of_a_range_are_even() -> None:
    drawn = [Lengths(1, 4).draw(random.Random(seed)) for seed in range(4000)]
    assert all(900 < drawn.count(length) < 1100 for length in (1, 2, 3, 4))


def test_word_prompts_allow_for_tokens_per_word_and_for_what_the_server_adds() -> None:
    material = Material(tokens_per_word=2.0, overhead=10.0)
    [question] = workload(prompt=Lengths(110, 110)).questions(1, material, "a")
    assert isinstance(question.prompt, str)
    assert len(question.prompt.split()) == 50


def test_a_prompt_is_never_empty() -> None:
    [question] = workload(prompt=Lengths(1, 1)).questions(1, Material(overhead=30.0), "a")
    assert question.prompt


def test_the_same_seed_and_part_ask_the_same_and_others_do_not() -> None:
    asked = workload(seed=1).questions(5, IDS, "8 at once/1")
    assert workload(seed=1).questions(5, IDS, "8 at once/1") == asked
    assert workload(seed=2).questions(5, IDS, "8 at once/1") != asked
    assert workload(seed=1).questions(5, IDS, "8 at once/2") != asked


def test_prompts_of_a_group_share_its_prefix_and_nothing_more() -> None:
    work = workload(shared_prefix=30, prefix_groups=3)
    questions = [*work.questions(40, IDS, "a"), *work.questions(40, IDS, "b")]
    assert all(len(question.prompt) == 50 for question in questions)
    assert len({tuple(question.prompt[:30]) for question in questions}) == 3
    assert len({tuple(question.prompt[30:]) for question in questions}) == 80


def test_a_prefix_of_words_stands_before_the_prompt() -> None:
    questions = workload(shared_prefix=10).questions(2, Material(), "a")
    first, second = (str(question.prompt).split() for question in questions)
    assert len(first) == 30
    assert first[:10] == second[:10]
    assert first[10:] != second[10:]


def test_a_file_gives_lengths_or_prompts_and_the_options_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text('{"prompt_tokens": 3, "output_tokens": 5}\n\n{"prompt": "Say é."}\n{"prompt_tokens": 7}\n')
    entries = read_entries(path)
    assert entries == [Entry(prompt_tokens=3, output_tokens=5), Entry(prompt="Say é."), Entry(prompt_tokens=7)]
    questions = workload(entries=tuple(entries)).questions(6, Material(), "a")
    asked = sorted((len(str(question.prompt).split()), question.output_tokens) for question in questions)
    assert asked == sorted([(3, 5), (2, 8), (7, 8)] * 2)  # each pass over the file asks every line once


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"tokens": 3}', "tokens"),
        ('{"prompt_tokens": 0}', "prompt_tokens is 0"),
        ('{"output_tokens": "3"}', "output_tokens"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"prompt": "x", "prompt_tokens": 3}', "exclude each other"),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text(f'{{"prompt_tokens": 3}}\n{line}\n')
    with pytest.raises(ValueError, match=complaint) as caught:
        read_entries(path)
    assert f"{path}, line 2" in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="no lines"):
        read_entries(path)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "5:3", "1:2:3", "1.5"])
def test_a_wrong_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        Lengths.parse(text)


def test_lengths_are_read_from_a_number_or_a_range() -> None:
    assert Lengths.parse("128") == Lengths(128, 128)
    assert Lengths.parse("64:256") == Lengths(64, 256)
