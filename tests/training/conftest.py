import importlib

import pytest
import torch.distributed as dist

from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from tests.training.world import make_world

pytest.register_assert_rewrite("tests.training.runs")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def cluster():
    config = ClusterConfig(local_cpus=4, object_store_gib=0.2)
    with ray_cluster(config) as lazy:
        lazy.ensure()
        yield config


@pytest.fixture(scope="session")
def alone():
    """This process as the only training worker: the whole loop, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        importlib.import_module("deepspeed")
        yield
        dist.destroy_process_group()
