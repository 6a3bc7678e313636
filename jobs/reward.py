"""Stage `reward`: a reward model compares each answer with the truth, where one is configured.

ray job submit --working-dir . -- python jobs/reward.py CONFIG
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not jobs/, whose names would hide packages
    from cpo_ray.cli import run_job

    run_job("reward")
