"""`cpo-ray validate`: check a configuration and say in a few lines what it would do."""

from functools import partial
from typing import Annotated

import typer
import yaml
from rich.markup import escape

from cpo_ray.checks.recipe import recipe_warnings
from cpo_ray.commands.failures import resumable
from cpo_ray.commands.options import AsJson, ConfigPath, Overrides, print_json
from cpo_ray.commands.placement import preview_placement, refuse_faults
from cpo_ray.commands.recipe import warn_about_recipe
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say, set_quiet


def validate(
    config: ConfigPath,
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the whole configuration first, with every default.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a configuration and the first rows of its data. Starts nothing and downloads nothing."""
    from cpo_ray.data.inspection import check_beginning, read_beginning, with_expected_rows
    from cpo_ray.planning.tables import describe_run

    with resumable("validate", config, None, overrides):
        if as_json:
            set_quiet(True)
        resolved = load_config(config, tuple(overrides or ()))
        if show and not as_json:
            say(escape(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
        found = [read_beginning(source) for source in resolved.data.inputs]
        counted, remark = with_expected_rows(resolved, found)
        placement = preview_placement(counted)
        lines = [*map(str, found), *remark, *describe_run(placement.config if placement else counted)]
        lines += placement.lines if placement else []
        if resolved.adapter is not None and (lacking := _check_adapter(placement.config if placement else resolved)):
            lines.append(lacking)
        if resolved.model.path is not None and (missing := _check_fit(resolved)):
            lines.append(missing)
        if as_json:
            lines += recipe_warnings(resolved)
        else:
            for line in lines:
                say(escape(line))
            warn_about_recipe(resolved)
        check_beginning(resolved.data, found)
        if as_json:
            print_json({"config": resolved.model_dump(mode="json"), "lines": lines})
        if placement is not None:
            refuse_faults(placement)


def _check_fit(config: RunConfig) -> str | None:
    """Compare model, tokenizer and lengths, from what is on this machine. Returns a line about what is not."""
    from cpo_ray.checks.model_fit import check_model_fit
    from cpo_ray.data.chat_template import load_data_tokenizer

    return check_model_fit(config, partial(load_data_tokenizer, config.data, local_only=True), local_only=True)


def _check_adapter(config: RunConfig) -> str | None:
    """Check targets and quantization. Returns a line about what this machine lacks and others may have."""
    from cpo_ray.training.adapter_checks import check_adapter

    return check_adapter(config)
