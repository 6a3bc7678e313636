"""A driver that is killed: `python -m tests.training.driver WORLD FOLDER KILLS [PAUSE SETTINGS]` trains into FOLDER/model.

KILLS: a JSON list of [what, step, rank], at which a worker kills this process. PAUSE: extra seconds per step. SETTINGS: of the
training, as JSON.
"""

import json
import os
import sys
from pathlib import Path

from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from cpo_ray.training import trainer
from tests.training.world import make_task, worker_with_kills

if __name__ == "__main__":
    world, folder = map(Path, sys.argv[1:3])
    kills = {(what, step): rank for what, step, rank in json.loads(sys.argv[3])}
    pause, settings = (float(sys.argv[4]), json.loads(sys.argv[5])) if sys.argv[4:] else (0.0, {})
    trainer.train_worker = worker_with_kills(kills, folder, victim=os.getpid(), pause=pause)
    cluster = ClusterConfig(local_cpus=4, object_store_gib=0.2)
    with ray_cluster(cluster) as lazy:
        lazy.ensure()
        (folder / "model").mkdir(exist_ok=True)
        task = make_task(world, **settings)
        trainer.train_model(task, cluster, folder / "checkpoints", folder / "model", print, print)
