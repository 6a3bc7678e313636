"""The bundled embedder, offline."""

import numpy as np
import pytest

from cpo_ray.errors import ConfigError
from cpo_ray.inference.embedding import check_embedder, embed_texts, load_embedder


@pytest.fixture(scope="module")
def embedder():
    return load_embedder("minilm", "cpu")


def test_embeddings_are_unit_vectors_that_reflect_meaning(embedder):
    vectors = embed_texts(embedder, ["the cat sat on the mat", "a cat is sitting on a rug", "interest rates rose", ""])
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]


def test_an_embedding_does_not_depend_on_its_batch(embedder):
    texts = [f"{'word ' * (n % 7)}number {n}" for n in range(40)]
    together = embed_texts(embedder, texts)
    assert np.abs(together[::-1] - embed_texts(embedder, texts[::-1])).max() < 1e-5
    assert np.abs(together[5] - embed_texts(embedder, texts[5:6])[0]).max() < 1e-5


def test_no_texts_give_no_rows(embedder):
    assert embed_texts(embedder, []).shape == (0, 384)


def test_an_unknown_embedder_is_named_in_the_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        for find in (load_embedder, check_embedder):
            with pytest.raises(ConfigError, match=rf"embedder .*{name}: neither `minilm`"):
                find(str(tmp_path / name))


def test_a_loadable_embedder_passes_the_check(embedder, tmp_path):
    embedder.save(str(tmp_path / "mine"))
    for name in ("minilm", str(tmp_path / "mine")):
        check_embedder(name)
