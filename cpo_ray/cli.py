"""The command line: thin commands over the stages. Heavy packages are imported by the stages, not here."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cpo_ray import __version__
from cpo_ray.commands.before import doctor, plan, validate
from cpo_ray.commands.configs import configs
from cpo_ray.commands.failures import command_tail, errors_in_red, plainly
from cpo_ray.commands.judge import judge
from cpo_ray.commands.merge import merge
from cpo_ray.commands.options import AcceptChanges, ConfigPath, ManyNumbers, Overrides, RunDir
from cpo_ray.commands.report import refuse_mixture, refuse_options, report_runs
from cpo_ray.commands.serve import serve
from cpo_ray.commands.submit import submit
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say
from cpo_ray.pipeline import STAGES, check_stages, run_pipeline
from cpo_ray.run import run_directory

HELP = f"""Train a language model to prefer the truth, with no human labels.

For each [b]prompt[/b] the data holds one true answer. cpo-ray itself makes several worse ones, the [b]negatives[/b]: \
the truth cut short or with tokens resampled, other prompts' answers, the model's own samples. A frozen copy of the \
starting model, the [b]reference[/b], says how likely it finds each. Contrastive Preference Optimization ([b]CPO[/b]) \
then trains the model to prefer the truth over its negatives by more than the reference does. The result is compared \
with plain next-token training ([b]MLE[/b]) for as many steps, and with weight averages of the two.

A run is one YAML file and one directory. Its stages, in order: {", ".join(STAGES)}. Each can be run alone. What is \
finished is not done twice: after Ctrl-C or a crash the same command goes on.

First command: [b]cpo-ray run configs/demo.yaml[/b] (two CPU cores, no GPU, no network; about ten minutes). \
For data of your own, [b]cpo-ray configs[/b] lists what to start from.
"""

app = typer.Typer(
    name="cpo-ray",
    help=HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(configs, name="configs", rich_help_panel="Before a run")
show = typer.Typer(help="Print what a run directory holds.", no_args_is_help=True)
app.add_typer(show, name="show", rich_help_panel="A run")

STAGE_PANEL = "One stage of a run, in order"


def _print_version(asked: bool) -> None:
    if asked:
        say(f"cpo-ray {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel="A run")
def run(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start with this stage.")] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """The whole pipeline, from data to report. Run it again to continue."""
    with plainly("run", config, run_dir, overrides, first=first, last=last):
        check_stages(first, last)
        _perform(config, run_dir, overrides, accept_changes, first, last)


def _stage_command(name: str) -> Callable[..., None]:
    def perform(
        config: ConfigPath,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        accept_changes: AcceptChanges = False,
    ) -> None:
        with plainly(name, config, run_dir, overrides):
            _perform(config, run_dir, overrides, accept_changes, name, name)

    stage = STAGES[name]
    reads = ", ".join(stage.reads) or "the data source"
    perform.__doc__ = f"{stage.about[0].upper()}{stage.about[1:]}.\n\nReads {reads}; writes {', '.join(stage.writes)}."
    return perform


for _name in STAGES:
    if _name != "report":
        app.command(_name, rich_help_panel=STAGE_PANEL)(_stage_command(_name))


@app.command(rich_help_panel=STAGE_PANEL)
def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CONFIG | RUN...", help="A run's YAML file, or run directories.")
    ],
    run_dir: RunDir = None,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="With RUN...: where the report goes. Default: reports/<runs>."),
    ] = None,
) -> None:
    """Tell it all in one page: of a run that goes on, or of finished ones side by side.

    With a CONFIG, it is the last stage of its run: reads everything above; writes report, models/*/README.md.

    With RUN directories (runs/demo runs/other), it compares what they hold on the prompts they share,
    changes nothing in them, needs neither their YAML files nor Ray, and writes to --out.
    """
    if not any(path.is_dir() for path in paths):
        with plainly("report", paths[0], run_dir, overrides):
            refuse_mixture(paths, out)
            _perform(paths[0], run_dir, overrides, accept_changes, "report", "report")
        return
    with errors_in_red():
        refuse_options(paths, run_dir, overrides, accept_changes)
        report_runs(paths, out)


@show.command("groups")
def show_groups(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory, e.g. runs/demo.")],
    row_id: Annotated[
        str | None, typer.Option("--id", metavar="X", help="The prompt's id, or how it begins: that group alone.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many groups to print without --id.")] = 1,
    split: Annotated[str, typer.Option("--split", help="`train`, or `validation` where it was sampled.")] = "train",
) -> None:
    """The negatives of a run: statistics per kind, and prompts with their candidates, ranks and reference log-probs."""
    from cpo_ray.commands.show import show_groups as shown

    with errors_in_red():
        Console(soft_wrap=False).print(shown(run_dir, split, row_id, rows))


def _perform(
    config: Path,
    run_dir: Path | None,
    overrides: list[str] | None,
    accept_changes: bool,
    first: str | None,
    last: str | None,
) -> None:
    resolved = load_config(config, tuple(overrides or ()))
    root = run_directory(resolved.name, run_dir)
    command = command_tail(config, run_dir, overrides)
    run_pipeline(resolved, root, first=first, last=last, accept_changes=accept_changes, command=command)


for _check in (validate, plan, doctor):
    app.command(rich_help_panel="Before a run")(_check)
app.command(rich_help_panel="A run")(errors_in_red()(submit))
app.command(rich_help_panel="Answers")(errors_in_red()(judge))
for _command in (merge, serve):
    app.command(cls=ManyNumbers, rich_help_panel="Models")(errors_in_red()(_command))


def main() -> None:
    """The entry point `cpo-ray`."""
    app()


def run_job(*command: str) -> None:
    """What jobs/*.py call: the same command line, on the Ray cluster that runs the job."""
    script, *arguments = sys.argv
    a_run = command[0] != "serve"
    joined = ["--set", "cluster.address=auto"] if a_run and "RAY_ADDRESS" in os.environ else []
    if joined and "--run-dir" not in arguments and "CPO_RAY_RUNS" not in os.environ:
        say(
            "[yellow]warning[/] this job writes its run below its own uploaded folder, which the cluster deletes in time: "
            "give --run-dir, or set CPO_RAY_RUNS on the cluster, a folder that all nodes see"
        )
    app([*command, *joined, *arguments], prog_name=f"python jobs/{Path(script).name}")
