import os

import pytest
import torch

from cpo_ray.inference import client
from tests.flaky_server import KEY, serve_flaky
from tests.sampling.group_settings import API, KIND_MODULE
from tests.sampling.tiny_reference import ROWS, make_tokenizer, write_data, write_reference


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are tiny: one thread is faster than two that synchronise."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("reference")
    write_reference(path, tokenizer)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def kind_module(tmp_path_factory):
    """The user's kinds in a module on PYTHONPATH. The kind `patient` waits for the file `gate` at the last row."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "shouting_kinds.py").write_text(KIND_MODULE.format(last=f"{ROWS - 1:x}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield folder


@pytest.fixture(scope="module")
def api():
    """An LLM with a fixed answer, which fails for some requests."""
    answer = {"choices": [{"message": {"role": "assistant", "content": "the apples are a pear"}}]}
    with serve_flaky(lambda _: answer, failing=0.1) as service, pytest.MonkeyPatch.context() as patch:
        patch.setitem(API, "url", service.url)
        patch.setenv("CPO_RAY_UNHELPFUL_KEY", KEY)
        patch.setattr(client, "FIRST_WAIT_S", 0.002)
        yield service
