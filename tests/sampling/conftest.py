import pytest
import torch

from tests.sampling.tiny_reference import make_tokenizer, write_data, write_reference


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
