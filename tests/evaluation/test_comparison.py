from cpo_ray.evaluation.comparison import summary_lines


def test_a_significant_position_bias_is_reported() -> None:
    summary = {"n": 50, "wins": 20, "losses": 4, "ties": 26, "invalid": 0, "win_rate": 0.66, "ci95": [0.56, 0.75]}
    summary |= {"flip_rate": 0.4, "mean_length_candidate": 3.0, "mean_length_reference": 3.0}
    summary |= {"length_controlled": None, "position_bias": {"rate": 0.7, "p_value": 0.0002}}
    _, rate, lengths, position = summary_lines(summary)
    assert rate == "win rate 66.0%, 95% interval 56.0% to 75.0%"
    assert lengths == "mean length 3.0 words against 3.0"
    assert position.startswith("40.0% of the pairs flipped")
    assert position.endswith("chosen 70.0% of the time (a preference, p = 0.0002)")
