"""The command line, called in this process."""

from click.testing import Result
from typer.testing import CliRunner

from cpo_ray.cli import app


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])
