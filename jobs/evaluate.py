"""Stages `generation` to `report`: answers, verdicts, MAUVE, text metrics, the report page.

ray job submit --working-dir . -- python jobs/evaluate.py CONFIG
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not jobs/, where files are named like packages
    from cpo_ray.cli import run_job

    run_job("run", "--from", "generation", "--until", "report")
