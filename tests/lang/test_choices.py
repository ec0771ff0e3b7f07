"""How select ranks its choices."""

import pytest

from lang.choices import (
    METHODS,
    ChoiceScore,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)


def score(logprobs, tokens=None, unconditional=()):
    return ChoiceScore("", tuple(tokens or range(len(logprobs))), tuple(logprobs), tuple(unconditional))


def test_length_does_not_count_against_a_choice():
    assert token_length_normalized.pick([score([-1.0]), score([-0.9] * 5)]) == 1


def test_greedy_takes_the_likelier_first_token_even_if_the_rest_is_poor():
    scores = [score([-2.0, -0.1], [1, 2]), score([-1.0, -9.0], [3, 4])]
    assert greedy_token_selection.pick(scores) == 1
    assert token_length_normalized.pick(scores) == 0


def test_greedy_goes_on_among_choices_that_share_tokens():
    scores = [score([-1.0, -3.0], [7, 1]), score([-1.0, -2.0], [7, 2]), score([-1.5, -0.1], [8, 3])]
    assert greedy_token_selection.pick(scores) == 1


@pytest.mark.parametrize(("tail", "picked"), [(-0.5, 1), (-2.0, 0)])
def test_greedy_keeps_an_ended_choice_with_its_mean(tail, picked):
    assert greedy_token_selection.pick([score([-1.0], [7]), score([-1.0, tail], [7, 9])]) == picked


def test_unconditional_takes_what_the_prompt_made_likelier():
    scores = [score([-1.0], unconditional=[-1.0]), score([-3.0], unconditional=[-6.0])]
    assert unconditional_likelihood_normalized.pick(scores) == 1
    assert token_length_normalized.pick(scores) == 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_of_equals_is_taken(method):
    assert method.pick([score([-1.0], [7], [-2.0]), score([-1.0], [7], [-2.0])]) == 0
