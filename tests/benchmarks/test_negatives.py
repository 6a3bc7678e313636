"""How the benchmark evaluates its measurements; the measurements themselves need an otherwise idle machine."""

import pytest

from benchmarks.negatives import LONGEST, SAMPLES, an_ratios, configure, hazard_inverse, speeds


def test_the_benchmarks_configuration_fits_the_model():
    config = configure(64)
    assert config.candidates == 1 + SAMPLES
    assert config.data.max_prompt_tokens + config.data.max_response_tokens <= config.model.context


def test_randomly_ending_samples_have_the_wanted_mean_length_after_the_cut():
    chance = 1 / hazard_inverse(57.0)
    by_length = [chance * (1 - chance) ** (length - 1) for length in range(1, LONGEST)]
    mean = sum(length * p for length, p in enumerate(by_length, start=1)) + LONGEST * (1 - chance) ** (LONGEST - 1)
    assert mean == pytest.approx(57.0, abs=0.01)


def test_speeds_are_tokens_per_wall_and_per_processor_second():
    numbers = speeds([10, 20, 128, 42], began=(100.0, 7.0), ended=(104.0, 17.0))
    assert (numbers["tokens_per_second"], numbers["tokens_per_processor_second"]) == (50.0, 20.0)
    assert (numbers["mean_tokens"], numbers["without_end"]) == (50.0, 0.25)


def test_each_run_through_ray_is_compared_with_the_bare_one_before_it(tmp_path):
    calls, lengths = [], {"bare": iter([100.0, 200.0]), "ray": iter([90.0, 190.0]), "hugging_face": iter([20.0])}

    def measure(name, folder, rows):
        calls.append(name)
        return speeds([int(next(lengths[name]))] * 2, (0.0, 0.0), (2.0, 1.0))

    entries = an_ratios(measure, tmp_path, 8)
    assert calls == ["bare", "ray", "bare", "ray", "hugging_face"]
    assert entries["an_against_bare_engine"]["spread"] == [0.9, 0.95]
    assert entries["an_against_hugging_face"]["value"] == pytest.approx(7.0)
    assert entries["an_against_hugging_face_by_processor_time"]["holds"]
