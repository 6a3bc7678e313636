import json
import re

import pytest

from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import INDEX, WEIGHTS, check_one_set_of_weights

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(folder, *files, index=()):
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_bytes(b"")
    if index:
        (folder / INDEX).write_text(json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(index)}}))
    return folder


@pytest.mark.parametrize(
    ("files", "index"),
    [
        ((WEIGHTS,), ()),
        (SHARDS, SHARDS),
        ((WEIGHTS,), (WEIGHTS,)),
        ((), ()),
        ((WEIGHTS, "pytorch_model.bin"), ()),
    ],
)
def test_one_set_of_weights_is_accepted(tmp_path, files, index):
    check_one_set_of_weights(write(tmp_path, *files, index=index))


@pytest.mark.parametrize(
    ("files", "index", "said"),
    [
        ((*SHARDS, WEIGHTS), SHARDS, [WEIGHTS, INDEX, "transformers loads", "vLLM loads", f"delete {WEIGHTS}, or {INDEX}"]),
        ((WEIGHTS,), SHARDS, [WEIGHTS, INDEX, SHARDS[0], "does not exist", f"Delete {INDEX}"]),
        ((WEIGHTS, SHARDS[1]), (WEIGHTS, SHARDS[1]), [WEIGHTS, INDEX, SHARDS[1]]),
        ((*SHARDS, "model-00003-of-00003.safetensors"), SHARDS, ["00003-of-00003", INDEX, "Delete"]),
        ((*SHARDS, "consolidated.safetensors"), SHARDS, ["consolidated.safetensors", "Delete"]),
        ((WEIGHTS, *SHARDS), (), [WEIGHTS, *SHARDS, "vLLM loads every", "Delete"]),
    ],
)  # fmt: skip
def test_a_second_set_of_weights_is_refused_with_what_to_delete(tmp_path, files, index, said):
    with pytest.raises(ArtifactError) as raised:
        check_one_set_of_weights(write(tmp_path, *files, index=index))
    for part in said:
        assert re.search(re.escape(part), str(raised.value)), (part, str(raised.value))
