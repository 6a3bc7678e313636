"""`cpo-ray validate`: check a configuration and print it in full."""

from functools import partial

import yaml
from rich.markup import escape

from cpo_ray.commands.failures import resumable
from cpo_ray.commands.options import ConfigPath, Overrides
from cpo_ray.commands.recipe import warn_about_recipe
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say


def validate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration and the first rows of its data. Prints every default. Starts nothing and downloads nothing."""
    from cpo_ray.data.inspection import check_beginning, read_beginning, with_expected_rows
    from cpo_ray.planning.tables import describe_run

    with resumable("validate", config, None, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        say(escape(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
        found = [read_beginning(source) for source in resolved.data.inputs]
        counted, remark = with_expected_rows(resolved, found)
        for line in (*map(str, found), *remark, *describe_run(counted)):
            say(escape(line))
        warn_about_recipe(resolved)
        if resolved.model.path is not None and (missing := _check_fit(resolved)):
            say(escape(missing))
        check_beginning(resolved.data, found)


def _check_fit(config: RunConfig) -> str | None:
    """Compare model, tokenizer and lengths, from what is on this machine. Returns a line about what is not."""
    from cpo_ray.checks.model_fit import check_model_fit
    from cpo_ray.data.chat_template import load_data_tokenizer

    return check_model_fit(config, partial(load_data_tokenizer, config.data, local_only=True), local_only=True)
