"""A small preregistration and values for it."""

from study.plan import Plan

REP = {
    "label": "rep-4 gap", "about": "Distance of rep-4 to the truth's.", "better": "lower",
    "file": "text_metrics/{model}/scores.json",
    "value": ["greedy", "rep_4", "answers", "value"], "truth": ["greedy", "rep_4", "truth", "value"],
    "rows": {"file": "text_metrics/{model}/greedy.jsonl", "key": "rep_4"},
}  # fmt: skip
NLL = {
    "label": "NLL",
    "about": "Nats per token.",
    "better": "lower",
    "file": "nll.json",
    "value": ["{model}"],
    "scale": -1,
}
AGAINST_MLE = {"greedy/cpo": 1, "greedy/mle": -1}
HYPOTHESES = {
    "H1": {
        "claim": "Greedy negatives lower the gap", "negligible": 0.02,
        "tests": [{"metric": "rep", "contrast": AGAINST_MLE, "direction": "less"}],
    },
    "H4": {
        "claim": "The paper's recipe equals MLE", "paper": "section 4",
        "tests": [
            {"metric": "rep", "contrast": {"paper/cpo": 1, "paper/mle": -1}, "direction": "less", "margin": 0.05},
            {"metric": "rep", "contrast": {"paper/cpo": 1, "paper/mle": -1}, "direction": "greater", "margin": -0.05},
        ],
    },
}  # fmt: skip


def make_plan(seeds=8, looks=(4, 8), **changes) -> Plan:
    tree = {
        "seeds": list(range(1, seeds + 1)), "tuning_seeds": [90], "looks": list(looks),
        "arms": {"greedy": "one greedy negative", "paper": "the paper's"},
        "metrics": {"rep": REP, "nll": NLL}, "hypotheses": HYPOTHESES,
    }  # fmt: skip
    return Plan.model_validate(tree | changes)


def spread(center, seeds, size=0.01):
    """Seed -> a value: half of them `size` above the center, half below."""
    return {seed: center + (size if seed % 2 else -size) for seed in range(1, seeds + 1)}


def make_values(greedy, paper, seeds):
    """The differences of both arms to an MLE whose gap is 0.4 in every seed."""
    mle = dict.fromkeys(range(1, seeds + 1), 0.4)
    terms = {"greedy/mle": mle, "paper/mle": mle, "greedy/cpo": spread(0.4 + greedy, seeds)}
    return {"rep": terms | {"paper/cpo": spread(0.4 + paper, seeds)}}
