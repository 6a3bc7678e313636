"""The few exceptions a user may see. Each says what happened and what to do; none needs a traceback."""


class CpoRayError(Exception):
    """Anything the user can act on. The command line prints it in one paragraph and exits with `exit_code`."""

    exit_code = 1


class ConfigError(CpoRayError):
    """The configuration is wrong: an unknown key, a value out of bounds, arithmetic that does not work out."""

    exit_code = 2


class DataError(CpoRayError):
    """Input data is missing or malformed. The message names file:line (or the byte offset)."""


class ArtifactError(CpoRayError):
    """A stage's output is missing, damaged, or does not belong to this run."""


class RunInUseError(CpoRayError):
    """Another process holds the run directory."""


class RunMismatchError(CpoRayError):
    """The run directory was made with another configuration. The message lists the fields that differ."""


class TrainingError(CpoRayError):
    """Training must not go on: the reference does not match the policy, or a number is not finite."""


class Preempted(CpoRayError):  # noqa: N818 - nothing went wrong
    """The process was told to end and has saved its work. The same command goes on."""

    exit_code = 143  # what a shell shows for a process that SIGTERM ended


class ServiceError(CpoRayError):
    """An endpoint did not come up, refused a request for good, or answered too much that cannot be used."""


class ClusterError(CpoRayError):
    """Ray could not be reached or does not offer what the configuration asks for."""
