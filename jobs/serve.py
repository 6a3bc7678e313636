"""Serve models of a finished run at one OpenAI-compatible endpoint, until the job is stopped.

ray job submit --working-dir . -- python jobs/serve.py RUN_DIR/models/cpo RUN_DIR/models/mle
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not jobs/, where files are named like packages
    from cpo_ray.cli import run_job

    run_job("serve")
