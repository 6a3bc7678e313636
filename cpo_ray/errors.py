"""The exceptions that a user may see. Each message names the problem and the remedy; no traceback is needed."""


class CpoRayError(Exception):
    """An error that the user can fix. The command line prints it in one paragraph and exits with `exit_code`."""

    exit_code = 1


class ConfigError(CpoRayError):
    """The configuration is invalid: an unknown key, a value out of bounds, sizes that do not fit together."""

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
    """Training must stop: the reference does not match the policy, or a number is not finite."""


class Preempted(CpoRayError):  # noqa: N818 - this is not a failure
    """The process got SIGTERM and has saved its work. The same command continues."""

    exit_code = 143  # what a shell reports for a process ended by SIGTERM


class ServiceError(CpoRayError):
    """An endpoint did not start, rejected a request permanently, or gave too many unusable answers."""


class ClusterError(CpoRayError):
    """Ray could not be reached, or the cluster lacks resources that the configuration needs."""


class SweepError(CpoRayError):
    """Runs of a sweep have failed. The message names them."""
