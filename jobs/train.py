"""Stages `cpo` and `mle`: both trainings, each from the reference model.

ray job submit --working-dir . -- python jobs/train.py CONFIG
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not jobs/, where files are named like packages
    from cpo_ray.cli import run_job

    run_job("run", "--from", "cpo", "--until", "mle")
