"""What the report quotes of the study: of every arm, how far CPO moves repetition from continued MLE, over seeds."""

from pathlib import Path

import cpo_ray.report
from cpo_ray.artifacts import write_json
from cpo_ray.report.study_quote import QUOTED, Quote
from study.decisions import Values
from study.estimates import mean_over_seeds
from study.measurements import Results
from study.tables import BASELINE

METRIC = "rep_4_gap"


def quotes_of(results: Results, values: Values) -> dict[str, Quote]:
    """Recipe -> its quote, for the arms that at least two seeds have finished: fewer have no interval."""
    quotes = {}
    terms = values.get(METRIC, {})
    for arm, record in results["arms"].items():
        ours, theirs = terms.get(f"{arm}/cpo", {}), terms.get(f"{arm}/{BASELINE}", {})
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        mean = mean_over_seeds(differences) if differences else None
        if mean is not None and mean.low is not None and mean.high is not None:
            quotes[record["recipe"]] = Quote(
                arm=arm,
                date=results["collected"][:10],
                seeds=mean.n,
                value=round(mean.value, 6),
                low=round(mean.low, 6),
                high=round(mean.high, 6),
            )
    return quotes


def write_quotes(quotes: dict[str, Quote], folder: Path | None = None) -> None:
    """Write them where the report reads them: into the package."""
    folder = Path(next(iter(cpo_ray.report.__path__))) if folder is None else folder
    write_json(folder / QUOTED, quotes)
