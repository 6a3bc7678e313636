"""`cpo-ray validate`: check a configuration and print it in full."""

import yaml
from rich.markup import escape

from cpo_ray.commands.failures import resumable
from cpo_ray.commands.options import ConfigPath, Overrides
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say


def validate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration and print it with every default filled in. Starts nothing."""
    from cpo_ray.planning.tables import describe_run

    with resumable("validate", config, None, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        say(escape(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
        for line in describe_run(resolved):
            say(escape(line))
