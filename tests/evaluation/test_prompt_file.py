"""Prompt files in the layouts that the field's sets come in; every bad row is reported with its line."""

import os

import pytest

from safeflux.errors import ConfigError
from safeflux.evaluation.prompt_file import Prompt, at_least, load_prompts


@pytest.fixture
def load(tmp_path):
    def write_and_load(text: str, encoding: str = "utf-8"):
        path = tmp_path / "prompts.csv"
        path.write_bytes(text.encode(encoding))
        return load_prompts(path)

    return write_and_load


def test_i2p(load):
    header = ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed,sd_guidance_scale,sd_model\n"
    rows = '0,"a cat, noto style","animals, pets",0,12.5,0.0,4048,7,x\n1,a  red apple ,,1,0,100,7,7,x\n'
    first, second = load(header + rows)
    percentages = {"inappropriate_percentage": 12.5, "nudity_percentage": 0}
    assert first == Prompt("a cat, noto style", 2, 4048, ("animals", "pets"), percentages)
    assert second == Prompt("a  red apple", 3, 7, (), {"inappropriate_percentage": 0, "nudity_percentage": 100})


def test_prompts_are_chosen_by_percentage_and_none_is_no_choice(load):
    prompts = load("prompt,a_percentage,b_percentage\na cat,50,10\na dog,49.9,90\na bus,80,20\n")
    assert [p.text for p in at_least(prompts, {"a_percentage": 50})] == ["a cat", "a bus"]
    assert [p.text for p in at_least(prompts, {"a_percentage": 50, "b_percentage": 20})] == ["a bus"]
    assert at_least(prompts, {}) == prompts
    with pytest.raises(ConfigError, match=r"none of 3 prompts has at least a_percentage 90"):
        at_least(prompts, {"a_percentage": 90})
    with pytest.raises(ConfigError, match=r"'nudity'.*a_percentage, b_percentage"):
        at_least(prompts, {"nudity": 50})


def test_i2p_subsets_name_the_seed_otherwise(load):
    assert load("case_number,prompt,evaluation_seed,evaluation_guidance\n0,a dog,3,7.5\n") == (
        Prompt("a dog", 2, 3, (), {}),
    )


@pytest.mark.parametrize("text", ["a cat\na dog\n", "prompt\na cat\na dog\n", "sensitive prompt\na cat\na dog"])
def test_ring_a_bell_is_a_single_column_with_or_without_a_header(load, text):
    assert [prompt.text for prompt in load(text)] == ["a cat", "a dog"]
    assert all(prompt.seed is None for prompt in load(text))


@pytest.mark.parametrize("column", ["adversarial_prompt", "adv_prompt"])
def test_mma_draws_the_adversarial_prompt_and_not_its_target(load, column):
    text = f"target_prompt,{column}\na castle,castl qx rook\n"
    assert [prompt.text for prompt in load(text)] == ["castl qx rook"]


def test_a_byte_order_mark_and_capitals_in_the_header_are_no_matter(load):
    assert load("Prompt,Categories\r\na bus,cars\r\n", "utf-8-sig") == (Prompt("a bus", 2, None, ("cars",), {}),)


def test_a_prompt_may_go_over_several_lines(load):
    first, second = load('prompt\n"a cat\nand a dog"\na bus\n')
    assert (first.text, first.line, second.line) == ("a cat\nand a dog", 2, 4)


def test_all_bad_rows_are_reported_at_once_with_their_lines(load):
    text = (
        "prompt,sd_seed,nudity_percentage\n"
        "a cat,1,0\n"
        ",2,0\n"
        "a dog,minus one,0\n"
        "\n"
        "a bus,3,0,more\n"
        'a car,4,"120"\n'
        "a key,-4,0\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(text)
    lines = [line.rpartition("prompts.csv:")[2] for line in str(caught.value).splitlines()]
    assert lines == [
        "3: prompt: expected a prompt, got nothing",
        "4: sd_seed: expected a whole number from 0 to 2^63 - 1, got 'minus one'",
        "5: expected 3 columns (prompt, sd_seed, nudity_percentage), got 0",
        "6: expected 3 columns (prompt, sd_seed, nudity_percentage), got 4",
        "7: nudity_percentage: expected a number from 0 to 100, got '120'",
        "8: sd_seed: expected a whole number from 0 to 2^63 - 1, got '-4'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("prompt\n", "header only"),
        (
            "text,seed\na cat,1\n",
            r":1: expected a header .*'prompt'.*got 2 columns that begin with 'text'",
        ),
        ("a cat, noto style\na dog\n", r"in double quotes where they have commas"),
        ("prompt,prompt\na,b\n", "'prompt' twice"),
        ('prompt\n"a cat\n', "expected CSV"),
        ("x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_file_that_cannot_be_read_is_refused(load, tmp_path):
    with pytest.raises(ConfigError, match="UTF-8"):
        load("prompt\ncafé\n", "latin-1")
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read"):
        load_prompts(tmp_path / "none.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_are_parted_by_commas_semicolons_or_tabs(load, separator):
    rows = [("prompt", "sd_seed", "categories"), ('"a cat; red, big"', "3", '"pets, animals"'), ("a dog", "4", "")]
    found = load("".join(separator.join(row) + "\r\n" for row in rows))
    assert [(p.text, p.seed) for p in found] == [("a cat; red, big", 3), ("a dog", 4)]
    assert found[0].categories == ("pets", "animals")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words;number\na cat;1\na dog;2\n", "separated by semicolons and begin with 'words'"),
        ("words\tnumber\na cat\t1\n", "separated by tabs and begin with 'words'"),
        ("Prompts\na cat\n", "got 'Prompts', which looks like a header"),
        ("adversarial prompt\na cat\n", "looks like a header"),
    ],
)
def test_a_header_is_never_a_prompt(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_prompt_may_have_a_semicolon_and_a_seed_may_be_called_so(load):
    assert [prompt.text for prompt in load("a cat; red\na dog\n")] == ["a cat; red", "a dog"]
    assert load("prompt,seed\na cat,9\n")[0].seed == 9


def test_a_pipe_is_no_file_of_prompts(tmp_path):
    os.mkfifo(tmp_path / "prompts.csv")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_prompts(tmp_path / "prompts.csv")
