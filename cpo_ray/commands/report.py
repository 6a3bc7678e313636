"""`cpo-ray report RUN...`: finished runs side by side. With a configuration file instead, `report` is a stage of its run."""

from collections.abc import Sequence
from pathlib import Path

from cpo_ray.errors import ConfigError

ONE_OR_THE_OTHER = "report takes one configuration file, or run directories only"


def report_runs(roots: Sequence[Path], out: Path | None) -> None:
    """Read run directories and write one report of them into `out` (default: reports/<runs>). Nothing in them changes.

    Raises ConfigError for an `out` within a run, whose files are sealed; ArtifactError for a damaged run.
    """
    from cpo_ray.report.write import show_report, write_report

    folder = out or Path("reports") / "-vs-".join(root.resolve().name for root in roots)
    for root in roots:
        if folder.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"--out {folder} lies within the run {root}, whose files are sealed: name a folder elsewhere"
            )
    show_report(write_report(roots, folder), folder)


def refuse_mixture(paths: Sequence[Path], out: Path | None) -> None:
    """Raise ConfigError for what `report` cannot do with a configuration file."""
    if len(paths) > 1:
        raise ConfigError(f"{paths[1]} is no run directory: {ONE_OR_THE_OTHER}")
    if out is not None:
        raise ConfigError(
            f"--out goes with run directories; the report of {paths[0]} is written into its run's directory"
        )


def refuse_options(
    paths: Sequence[Path], run_dir: Path | None, overrides: Sequence[str] | None, accept_changes: bool
) -> None:
    """Raise ConfigError for what `report` cannot do with run directories."""
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no run directory: {ONE_OR_THE_OTHER}")
    if run_dir or overrides or accept_changes:
        raise ConfigError(
            "--run-dir, --set and --accept-changes go with a configuration file, not with run directories"
        )
