"""Stage `reference`: the model that is sampled from and trained further.

ray job submit --working-dir . -- python jobs/reference.py CONFIG
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not jobs/, whose names would hide packages
    from cpo_ray.cli import run_job

    run_job("reference")
