"""Print what a recipe cannot change, for `validate` and at the start of a run."""

from rich.markup import escape

from cpo_ray.checks.recipe import recipe_warnings
from cpo_ray.config import RunConfig
from cpo_ray.monitoring.console import say


def warn_about_recipe(config: RunConfig) -> None:
    """Print a warning for a recipe whose optimum is near to the reference."""
    for warning in recipe_warnings(config):
        say(f"[yellow]warning[/] {escape(warning)}")
