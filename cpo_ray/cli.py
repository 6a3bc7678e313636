"""The command line: assembles the commands of `cpo_ray.commands`. Heavy packages are imported when a command runs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpo_ray import __version__
from cpo_ray.commands.configs import configs
from cpo_ray.commands.doctor import doctor
from cpo_ray.commands.failures import exit_on_error
from cpo_ray.commands.fetch import fetch
from cpo_ray.commands.groups import groups
from cpo_ray.commands.judge import judge
from cpo_ray.commands.merge import merge
from cpo_ray.commands.options import MultiNumberCommand
from cpo_ray.commands.plan import plan
from cpo_ray.commands.report import report
from cpo_ray.commands.run import run, stage_command
from cpo_ray.commands.serve import serve
from cpo_ray.commands.show import show
from cpo_ray.commands.submit import submit
from cpo_ray.commands.sweep import sweep
from cpo_ray.commands.validate import validate
from cpo_ray.monitoring.console import say, set_quiet
from cpo_ray.pipeline import STAGES

HELP = f"""Train a language model to prefer the truth, with no human labels.

The data has one true answer per [b]prompt[/b]. cpo-ray makes several worse ones, the [b]negatives[/b]: the truth cut \
short or with tokens resampled, other prompts' answers, the model's own samples. A frozen copy of the starting model, the \
[b]reference[/b], scores how likely each is. Contrastive Preference Optimization ([b]CPO[/b]) then trains the model to \
prefer the truth over its negatives by more than the reference does. The result is compared with plain next-token \
training ([b]MLE[/b]) for as many steps, and with weight averages of the two.

A run is one YAML file and one directory. Its stages, in order: {", ".join(STAGES)}. Each can be run alone. Finished \
stages are reused: after Ctrl-C or a crash the same command continues.

First command: [b]cpo-ray run configs/demo.yaml[/b] (two CPU cores, no GPU, no network; about ten minutes). \
To use your own data, start from one of the files that [b]cpo-ray configs[/b] lists.
"""

BEFORE_A_RUN = "Before a run"
A_RUN = "A run"
ONE_STAGE = "One stage of a run, in order"
MODELS = "Models"
ANSWERS = "Answers"

app = typer.Typer(
    name="cpo-ray",
    help=HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"cpo-ray {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and results only, no progress.")] = False,
) -> None:
    set_quiet(quiet)


app.add_typer(configs, name="configs", rich_help_panel=BEFORE_A_RUN)
app.command(rich_help_panel=BEFORE_A_RUN)(validate)
app.command(rich_help_panel=BEFORE_A_RUN)(plan)
app.command(rich_help_panel=BEFORE_A_RUN)(doctor)
app.command(rich_help_panel=BEFORE_A_RUN)(exit_on_error()(fetch))

app.command(rich_help_panel=A_RUN)(run)
app.command(rich_help_panel=A_RUN)(sweep)
app.command(rich_help_panel=A_RUN)(exit_on_error()(submit))
app.add_typer(show, name="show", rich_help_panel=A_RUN)
app.add_typer(groups, name="groups", rich_help_panel=A_RUN)

for _name in STAGES:
    if _name != "report":
        app.command(_name, rich_help_panel=ONE_STAGE)(stage_command(_name))
app.command(rich_help_panel=ONE_STAGE)(report)

app.command(rich_help_panel=ANSWERS)(exit_on_error()(judge))
app.command(cls=MultiNumberCommand, rich_help_panel=MODELS)(exit_on_error()(merge))
app.command(cls=MultiNumberCommand, rich_help_panel=MODELS)(exit_on_error()(serve))


def main() -> None:
    """The entry point `cpo-ray`."""
    app()


def run_job(*command: str) -> None:
    """The entry point of jobs/*.py: the same command line, on the Ray cluster that runs the job."""
    script, *arguments = sys.argv
    is_run = command[0] != "serve"
    cluster = ["--set", "cluster.address=auto"] if is_run and "RAY_ADDRESS" in os.environ else []
    if cluster and "--run-dir" not in arguments and "CPO_RAY_RUNS" not in os.environ:
        say(
            "[yellow]warning[/] this job writes its run into its own uploaded folder, which the cluster deletes later: "
            "give --run-dir, or set CPO_RAY_RUNS on the cluster to a folder that all nodes see"
        )
    app([*command, *cluster, *arguments], prog_name=f"python jobs/{Path(script).name}")
