"""What stages leave on disk: artifacts with manifests, atomic files, locks, journals, and a store that runs share."""

from cpo_ray.artifacts.environment import CHECKOUT, describe_environment, git_revision
from cpo_ray.artifacts.hashing import WEIGHTS, canonical, content_key, hash_directories, hash_file
from cpo_ray.artifacts.io import (
    read_jsonl,
    read_table,
    sync_folder,
    write_atomically,
    write_json,
    write_rows,
    write_table,
)
from cpo_ray.artifacts.journal import Journal
from cpo_ray.artifacts.lock import lock_run
from cpo_ray.artifacts.manifest import (
    INPUTS,
    MANIFEST,
    SELECTED,
    STATS,
    Artifact,
    Builder,
    Manifest,
    Summary,
    find_artifact,
    make_artifact,
)

__all__ = [
    "CHECKOUT",
    "INPUTS",
    "MANIFEST",
    "SELECTED",
    "STATS",
    "WEIGHTS",
    "Artifact",
    "Builder",
    "Journal",
    "Manifest",
    "Summary",
    "canonical",
    "content_key",
    "describe_environment",
    "find_artifact",
    "git_revision",
    "hash_directories",
    "hash_file",
    "lock_run",
    "make_artifact",
    "read_jsonl",
    "read_table",
    "sync_folder",
    "write_atomically",
    "write_json",
    "write_rows",
    "write_table",
]
