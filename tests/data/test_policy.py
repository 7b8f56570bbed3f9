from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_jupyter.data.policy import OPERATIONS, Operation, parse
from aios_jupyter.errors import UsageError

EVERYTHING = (
    "rotate(15), shift(0.1), scale(0.9, 1.1), shear(5), hflip, vflip, crop(0.8), brightness(0.2), "
    "contrast(0.2), noise(0.05), blur(1), cutout(0.2), resize(32, 48), saturation(.5), hue(1e-1), "
    "perspective(0.2), solarize(0.7), posterize(4), autocontrast, equalize, sharpness(0.5), "
    "mixup(0.2), cutmix(1), randaugment(2, 9), trivialaugment"
)


def test_every_operation_parses():
    policy = parse(EVERYTHING)
    assert {operation.name for operation in policy.operations} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("rotate(15)", -15, 15),
        ("rotate(-5, 20)", -5, 20),
        ("scale(0.1)", 0.9, 1.1),
        ("contrast(0.8, 1.3)", 0.8, 1.3),
        ("hflip", 0.5, 0.5),
        ("hflip()", 0.5, 0.5),
        ("HFlip( .25 )", 0.25, 0.25),
        ("noise(5e-2)", 0.05, 0.05),
        ("resize(32)", 32, 32),
        ("resize(64, 32)", 64, 32),
        ("hflip(p=0.25)", 0.25, 0.25),
        ("posterize(3)", 3, 3),
        ("randaugment", 2, 9),
        ("randaugment(3)", 3, 9),
        ("randaugment(1, 30)", 1, 30),
    ],
)
def test_one_number_is_a_range_about_the_neutral_one_and_two_are_as_written(text, low, high):
    (operation,) = parse(text).operations
    assert (operation.low, operation.high) == pytest.approx((low, high))


def test_the_text_of_every_operation_parses_to_itself():
    policy = parse(EVERYTHING)
    assert parse(str(policy)) == policy


def test_how_it_is_written_does_not_matter():
    assert str(parse("rotate(15),hflip")) == "rotate(-15, 15), hflip(0.5)"
    assert str(parse("rotate(15),hflip")) == str(parse(" rotate( -15 ,15.0 ) ,\n HFLIP(0.5) "))
    assert parse(parse("hflip")) == parse("hflip")


@pytest.mark.parametrize(
    ("text", "p"),
    [("blur(1)", 1), ("blur(1, p=0.3)", 0.3), ("rotate(-5, 5, P = .5)", 0.5), ("hflip(p=0.3)", 1)],
)
def test_a_probability_comes_last_and_is_what_a_flip_takes_anyway(text, p):
    (operation,) = parse(text).operations
    assert operation.p == p
    assert parse(str(operation)).operations == (operation,)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("blur(1, p=2)", 11, "p takes 0 to 1, not 2"),
        ("blur(1, p=)", 11, "p takes numbers"),
        ("blur(1, p=0.3, 2)", 14, "expected ')' after the probability"),
        ("blur(p=0.3)", 1, "needs a number"),
        ("resize(32, p=0.5)", 1, "takes no probability"),
        ("trivialaugment(3)", 16, "takes no numbers"),
        ("randaugment(9, 9)", 13, "1 to 8 operations, not 9"),
        ("randaugment(2, 31)", 16, "0 to 30, not 31"),
        ("", 1, "empty"),
        ("rotate(15), shft(0.1)", 13, "did you mean 'shift'?"),
        ("rotate(15), xyzzy", 13, "there are rotate"),
        ("rotate(15", 10, "not the end"),
        ("rotate(15) shift(.1)", 12, "expected a comma before 'shift'"),
        ("rotate", 1, "needs a number, as in 'rotate(15)'"),
        ("hflip, rotate()", 8, "needs a number"),
        ("rotate(x)", 8, "takes numbers, as in 'rotate(15)', not 'x'"),
        ("rotate(15deg)", 8, "not '15deg'"),
        ("rotate(nan)", 8, "not 'nan'"),
        ("rotate(1,2,3)", 12, "two numbers at most"),
        ("crop(0.8, 1)", 11, "one number"),
        ("scale(2)", 7, "write a range as in 'scale(1, 2)'"),
        ("scale(1.1, 0.9)", 12, "must rise"),
        ("rotate(10, 200)", 12, "-180 to 180, not 200"),
        ("noise(2)", 7, "0 to 1, not 2"),
        ("resize(1.5)", 8, "whole numbers"),
        ("hflip,", 7, "instead of the end"),
        (",", 1, "instead of ','"),
        ("hflip)", 6, "before ')'"),
    ],
)
def test_an_error_is_a_sentence_that_points_at_the_place(text, column, words):
    with pytest.raises(UsageError) as caught:
        parse(text)
    sentence, line, caret = str(caught.value).split("\n")
    assert f"at column {column}:" in sentence
    assert words in sentence
    assert sentence.endswith((".", "?"))
    assert line == f"    {text}"
    assert caret.index("^") == 4 + column - 1


@given(st.text(alphabet="rotaeshiflpcu(),. -+015xe=\t\n", max_size=40))
def test_any_text_parses_or_is_a_usage_error(text):
    try:
        policy = parse(text)
    except UsageError:
        return
    assert parse(str(policy)) == policy


@given(
    st.lists(
        st.tuples(
            st.sampled_from([n for n, k in OPERATIONS.items() if k.numbers == 2]),
            st.floats(0, 1),
            st.floats(0, 1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_canonical_text_of_a_policy_parses_to_itself(drawn):
    operations = []
    for name, a, b in drawn:
        kind = OPERATIONS[name]
        values = sorted(round(kind.least + t * (kind.most - kind.least), 6) for t in (a, b))
        if kind.whole:
            values = [max(1, round(v)) for v in values]
        if name == "randaugment":
            values[0] = min(values[0], 8)
        operations.append(Operation(name, *map(float, values)))
    text = ", ".join(map(str, operations))
    assert parse(text).operations == tuple(operations)
