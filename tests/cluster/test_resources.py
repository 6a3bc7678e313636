from cpo_ray.cluster.resources import (
    sampling_resources,
    scorer_resources,
    scoring_resources,
    serving_resources,
    streaming_resources,
    training_resources,
)
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


def test_in_phases_the_engines_come_first():
    pools = {"engines": {"minimum": 2}, "scorers": {"gpus": 0.75}, "rankers": {"gpus": 0.25}}
    sampling = {"negatives": {"autoregressive": 4}, "in_phases": True} | pools
    run = config(cluster={"gpus": 2}, sampling=sampling)
    assert sampling_resources(run) == [{"GPU": 1}] * 2
    assert scoring_resources(run) == [{"GPU": 0.75}, {"GPU": 0.25}]
    assert sampling_resources(config(cluster={"gpus": 2}, sampling={"in_phases": True} | pools)) == scoring_resources(
        run
    )
    at_once = config(cluster={"gpus": 1}, sampling={**sampling, "in_phases": False, "engines": {"gpus": 0.5}})
    assert sampling_resources(at_once) == [{"GPU": 0.75}, {"GPU": 0.25}, {"GPU": 0.5}]
    assert scorer_resources(run.cluster) == [{"GPU": 1}]
    assert scorer_resources(config().cluster) == []


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
