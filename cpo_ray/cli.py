"""The command line: thin commands over the stages. Heavy packages are imported by the stages, not here."""

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cpo_ray import __version__
from cpo_ray.commands.judge import judge
from cpo_ray.commands.merge import merge
from cpo_ray.commands.options import ManyNumbers
from cpo_ray.commands.report import refuse_mixture, refuse_options, report_runs
from cpo_ray.commands.serve import serve
from cpo_ray.commands.submit import submit
from cpo_ray.configfile import load_config
from cpo_ray.errors import CpoRayError
from cpo_ray.pipeline import STAGES, check_stages, run_pipeline
from cpo_ray.progress import say
from cpo_ray.run import run_directory
from cpo_ray.shipped import copy_shipped, opening, shipped_configs

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C

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
configs = typer.Typer(help="List the shipped configurations, or copy one to start from.", invoke_without_command=True)
app.add_typer(configs, name="configs", rich_help_panel="Before a run")
show = typer.Typer(help="Print what a run directory holds.", no_args_is_help=True)
app.add_typer(show, name="show", rich_help_panel="A run")


class GpuKind(StrEnum):
    """What `plan` knows the numbers of."""

    A100_40 = "a100-40"
    A100_80 = "a100-80"
    H100 = "h100"
    CPU = "cpu"


STAGE_PANEL = "One stage of a run, in order"

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where the run lives. Default: <name> in CPO_RAY_RUNS, or in runs."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.steps=100. Repeatable."),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="The run was made with other settings: redo in place what they touch."),
]


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
    with _errors_in_red():
        refuse_options(paths, run_dir, overrides, accept_changes)
        report_runs(paths, out)


@app.command(rich_help_panel="Before a run")
def validate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration and print it with every default filled in. Starts nothing."""
    from cpo_ray.plan_table import describe_run

    with plainly("validate", config, None, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        say(escape(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
        for line in describe_run(resolved):
            say(escape(line))


@app.command(rich_help_panel="Before a run")
def plan(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    gpu: Annotated[GpuKind, typer.Option("--gpu", help="What it would run on.")] = GpuKind.A100_80,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, of 8 GPUs each.")] = 1,
    parameters: Annotated[
        float | None, typer.Option("--parameters", metavar="N", help="Of a hub model that is not on this machine.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", metavar="P", min=0, help="Of a machine-hour: what the run then costs.")
    ] = None,
) -> None:
    """Estimate rows, tokens, parameters, memory per GPU, GPU-hours, and the same on 2, 8 and 64 machines. Starts nothing."""
    from cpo_ray.plan_table import render_plan
    from cpo_ray.planning import make_plan

    with plainly("plan", config, run_dir, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        root = run_directory(resolved.name, run_dir)
        estimate = make_plan(resolved, gpu.value, nodes, root=root, parameters=parameters)
        Console(soft_wrap=False).print(render_plan(estimate, price))


@app.command(rich_help_panel="Before a run")
def doctor(
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Where runs will live.")] = Path("runs"),
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Check a cluster.yaml, or a folder of manifests, instead."),
    ] = None,
) -> None:
    """Check this machine: versions, GPUs, network, compilers, Ray's token, disk and memory, each with its remedy."""
    from cpo_ray.clusterfile import examine_cluster
    from cpo_ray.doctor import examine, render_checks

    with _errors_in_red():
        checks = examine(run_dir) if cluster is None else examine_cluster(cluster, Path.home())
    Console(soft_wrap=False).print(render_checks(checks))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)


@configs.callback()
def _configs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_configs()


@configs.command("list")
def list_configs() -> None:
    """The shipped configurations, each with its first line."""
    with _errors_in_red():
        table = Table(box=None, pad_edge=False)
        table.add_column("config", no_wrap=True, style="bold")
        table.add_column("what it is")
        for name, path in shipped_configs().items():
            table.add_row(escape(name), escape(opening(path.read_text(encoding="utf-8"))))
        Console(soft_wrap=False).print(table)
        say("Copy one with: cpo-ray configs copy NAME")


@configs.command("copy")
def copy_config(
    name: Annotated[str, typer.Argument(help="As `cpo-ray configs` lists it.")],
    to: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: NAME.yaml here.")] = None,
) -> None:
    """Copy a shipped configuration. Never overwrites a file."""
    with _errors_in_red():
        target = copy_shipped(name, to)
        say(escape(f"copied to {target}; next: cpo-ray validate {shlex.quote(str(target))}"))


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
    from cpo_ray.show import show_groups as shown

    with _errors_in_red():
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


def command_tail(config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None) -> str:
    """What follows `cpo-ray COMMAND` to name the same run again, quoted for a shell."""
    words = [str(config)]
    words += ["--run-dir", str(run_dir)] if run_dir else []
    for override in overrides or ():
        words += ["--set", override]
    for option, name in (("--from", stages.get("first")), ("--until", stages.get("last"))):
        words += [option, name] if name else []
    return shlex.join(words)


@contextlib.contextmanager
def plainly(
    name: str, config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None
) -> Iterator[None]:
    """Tell what the user can act on in one paragraph, without a traceback; tell how to go on after Ctrl-C."""
    try:
        with _errors_in_red():
            yield
    except KeyboardInterrupt:
        again = f"cpo-ray {name} {command_tail(config, run_dir, overrides, **stages)}"
        Console(stderr=True, soft_wrap=True).print(Text(f"Stopped. The same command continues the run: {again}"))
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def _errors_in_red() -> Iterator[None]:
    try:
        yield
    except CpoRayError as error:
        _say_in_red(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        _say_in_red(f"{error}. What is finished is kept: once this is mended, the same command continues.")
        raise typer.Exit(1) from None


def _say_in_red(words: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(words, style="red"))


app.command(rich_help_panel="A run")(_errors_in_red()(submit))
app.command(rich_help_panel="Answers")(_errors_in_red()(judge))
for _command in (merge, serve):
    app.command(cls=ManyNumbers, rich_help_panel="Models")(_errors_in_red()(_command))


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
