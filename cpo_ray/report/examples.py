"""The first test prompts with the true answer, continued MLE's and CPO's side by side: what the numbers look like as text."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypedDict

from rich.markup import escape as escape_console
from rich.table import Table

from cpo_ray.report.method import BASELINE
from cpo_ray.report.run_contents import RunContents

COUNT = 3  # the first ones, so that none is picked
COMPARED = (BASELINE, "cpo")
MAX_CHARACTERS = 320  # of each text; the page's sample browser has the whole


class AnsweredPrompt(TypedDict):
    """One prompt with its answers."""

    prompt: str
    truth: str
    answers: dict[str, str]  # model -> answer


def first_examples(runs: Sequence[RunContents], decoding: str | None) -> list[AnsweredPrompt]:
    """The first prompts of a single run that both models have answered; none for several runs."""
    if len(runs) != 1 or decoding is None:
        return []
    answers = {model: runs[0].generations.get(model, {}).get(decoding, []) for model in COMPARED}
    responses = {model: {row["id"]: row["response"] for row in rows} for model, rows in answers.items()}
    shared = [row for row in answers[BASELINE] if all(row["id"] in found for found in responses.values())]
    return [
        AnsweredPrompt(
            prompt=_shorten(row["prompt"], from_end=True),
            truth=_shorten(row["reference"]),
            answers={model: _shorten(found[row["id"]]) for model, found in responses.items()},
        )
        for row in shared[:COUNT]
    ]


def render_examples(examples: Sequence[AnsweredPrompt]) -> str:
    """The examples as HTML; an empty string without any."""
    if not examples:
        return ""
    blocks = (_block(each) for each in examples)
    return f"<h3>The first {len(examples)} test prompts</h3>{''.join(blocks)}"


def _block(example: AnsweredPrompt) -> str:
    texts = {"the truth": example["truth"], **example["answers"]}
    columns = "".join(f"<div><h4>{escape(name)}</h4><p>{escape(text)}</p></div>" for name, text in texts.items())
    return f'<div class="example"><p class="prompt">{escape(example["prompt"])} …</p>{columns}</div>'


def format_example(example: Mapping[str, Any]) -> Table:
    """One example for the terminal."""
    table = Table(title="the first test prompt", show_header=False, show_lines=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in {"prompt": example["prompt"], "truth": example["truth"], **example["answers"]}.items():
        table.add_row(name, escape_console(" ".join(text.split())))
    return table


def _shorten(text: str, *, from_end: bool = False) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"… {text[-MAX_CHARACTERS:]}" if from_end else f"{text[:MAX_CHARACTERS]} …"
