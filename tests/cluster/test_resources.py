from cpo_ray.cluster.resources import sampling_resources, serving_resources, streaming_resources, training_resources
from cpo_ray.config.loading import parse_config


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


def test_resources_without_gpus():
    run = config(training={"workers": 2})
    assert training_resources(run.training, run.cluster) == [{"CPU": 1}, {"CPU": 1}]
    assert sampling_resources(run) == serving_resources(run, 3) == []


def test_resources_with_gpus():
    run = config(
        cluster={"gpus_per_worker": 1},
        sampling={"negatives": {"autoregressive": 4}, "engine": {"tensor_parallel": 2}},
        serving={"engine": {"tensor_parallel": 4}},
    )
    assert training_resources(run.training, run.cluster) == [{"CPU": 1, "GPU": 1}] * 2
    assert sampling_resources(run) == [{"GPU": 1}, {"GPU": 1}, {"GPU": 2}]
    assert serving_resources(run, 2) == [{"GPU": 1}] * 8
    greedy = config(cluster={"gpus_per_worker": 1}, sampling={"negatives": {"greedy": 1}})
    assert sampling_resources(greedy) == [{"GPU": 1}] * 3, "every kind that vLLM samples needs an engine"
    several = config(cluster={"gpus_per_worker": 1}, serving={"min_replicas": 2, "max_replicas": 3})
    assert serving_resources(several, 5) == [{"GPU": 1}] * 10
    shared = config(cluster={"gpus_per_worker": 1}, serving={"in_place": True, "min_replicas": 2, "max_replicas": 3})
    assert serving_resources(shared, 5) == [{"GPU": 1}] * 2, "one engine serves all models"
    assert sampling_resources(config(cluster={"gpus_per_worker": 1})) == [{"GPU": 1}, {"GPU": 1}]


def test_streaming_needs_trainers_actors_and_tasks_at_once():
    """A task that waits for a snapshot must not block a task that training waits for."""
    tasks = [{"CPU": 0.5}] * 3
    mixed = config(sampling={"stream": True}, training={"workers": 2})
    assert streaming_resources(mixed) == [{"CPU": 1}] * 2 + [{"CPU": 0.5}] * 2 + tasks
    online = {"stream": True, "negatives": {"autoregressive": 4}}
    assert len(streaming_resources(config(sampling=online, training={"workers": 2}))) == 2 + 3 + 3
    on_gpus = config(cluster={"gpus_per_worker": 1}, sampling=online, training={"workers": 2})
    actors = [{"GPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert streaming_resources(on_gpus) == [{"CPU": 1, "GPU": 1}] * 2 + actors + tasks
