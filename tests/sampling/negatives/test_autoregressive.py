"""Autoregressive negatives: sampling parameters, EOS and repeated samples."""

from hypothesis import given

from cpo_ray.config import KindDecoding
from cpo_ray.config.sampled_kinds import GREEDY
from cpo_ray.sampling.negatives.autoregressive import (
    autoregressive_negative,
    repeated,
    sample_limit,
    sampling_parameters,
)
from tests.sampling.example_rows import EOS
from tests.sampling.negatives.draws import tokens

KIND, PAPER = "autoregressive", KindDecoding(temperature=1.0, top_k=50, top_p=1.0)


@given(body=tokens)
def test_a_sample_ends_with_eos_unless_it_reached_the_length_limit(body):
    assert autoregressive_negative(body, "stop", EOS) == [*body, EOS]
    assert autoregressive_negative([*body, EOS], "stop", EOS) == [*body, EOS]
    assert autoregressive_negative(body, "length", EOS) == body


def test_a_sample_that_ended_with_another_end_of_text_ends_with_eos_as_the_golds_do():
    parameters = sampling_parameters(KIND, PAPER, 64, EOS, 17, "a", vocabulary=99, n=2, attempt=0, other_eos=(97, 98))
    assert parameters["stop_token_ids"] == [EOS, 97, 98]
    assert autoregressive_negative([5, 6, 98], "stop", EOS, (97, 98)) == [5, 6, EOS]
    assert autoregressive_negative([5, 6, EOS], "stop", EOS, (97, 98)) == [5, 6, EOS]
    assert autoregressive_negative([97], "stop", EOS, (97, 98)) == [EOS]
    assert autoregressive_negative([5, 98], "length", EOS, (97, 98)) == [5, 98]


def test_a_sample_is_cut_where_a_cut_gold_is():
    assert sample_limit([1, 2, EOS], EOS, 8) == 8
    assert sample_limit([1] * 8, EOS, 8) == 8
    assert sample_limit([1, 2, 3], EOS, 8) == 3  # a passage, after which its article goes on


def test_sampling_parameters_follow_the_paper_and_are_seeded_by_row():
    first, again, other = (
        sampling_parameters(KIND, PAPER, 64, EOS, 17, row_id, vocabulary=1024, n=11, attempt=0)
        for row_id in ("a", "a", "b")
    )
    assert first == again
    assert first["seed"] == 1330740268874507079  # another seed would change the negatives of existing runs
    assert first["seed"] != other["seed"]
    assert 0 <= first["seed"] < 2**62
    assert (first["n"], first["top_k"], first["temperature"], first["max_tokens"]) == (11, 50, 1.0, 64)
    once_more = sampling_parameters(KIND, PAPER, 64, EOS, 17, "a", vocabulary=20, n=2, attempt=1)
    assert (once_more["n"], once_more["top_k"]) == (2, 20)
    assert once_more["seed"] != first["seed"]


def test_every_kind_has_its_own_parameters_and_seeds():
    def parameters(kind, decoding):
        return sampling_parameters(kind, decoding, 64, EOS, 17, "a", vocabulary=20, n=1, attempt=0)

    hot = parameters("hot", KindDecoding(1.4, -1, 0.9))
    assert (hot["temperature"], hot["top_k"], hot["top_p"]) == (1.4, 0, 0.9)
    assert parameters("hot", KindDecoding(1.4, 0, 0.9)) == hot
    greedy = parameters("greedy", GREEDY)
    assert (greedy["temperature"], greedy["top_k"], greedy["top_p"]) == (0, 0, 1)
    alike = [parameters(kind, PAPER)["seed"] for kind in (KIND, "hot", "warm")]
    assert len(set(alike)) == 3


def test_samples_that_equal_a_candidate_or_each_other_are_found():
    gold, batch = [1, 2, EOS], [3, EOS]
    samples = [[4, EOS], [1, 2, EOS], [4, EOS], [3, EOS], [5, 5]]
    assert repeated(samples, [gold, batch]) == [1, 2, 3]
    assert repeated([], [gold]) == []
