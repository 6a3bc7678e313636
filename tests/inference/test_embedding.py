"""The bundled embedder, offline."""

import numpy as np
import pytest

from cpo_ray.errors import ConfigError
from cpo_ray.inference.embedding import _split_texts, check_embedder, embed_texts, load_embedder


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


def sentences(count):
    return [f"In the year {1900 + n} the town of Arlen built bridge number {n}." for n in range(count)]


def test_a_long_text_is_read_to_its_end(embedder):
    """MiniLM reads 256 word pieces: without pooling, a long text and its first nine tenths have cosine 1."""
    long = " ".join(sentences(60))
    assert len(embedder.tokenizer(long)["input_ids"]) > 3 * embedder.max_seq_length
    other_end = long[: -len(long) // 10] + " Interest rates rose, and nobody knew why." * 6
    vectors = embed_texts(embedder, [long, long[: -len(long) // 10], other_end])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert vectors[0] @ vectors[1] < 1 - 1e-4
    assert vectors[0] @ vectors[2] < vectors[0] @ vectors[1] - 1e-3


def test_a_long_text_is_the_mean_of_its_pieces_weighted_by_tokens(embedder):
    window = embedder.max_seq_length - 2
    words = ["apple"] * window + ["interest"] * (window // 2)
    first, second, both = embed_texts(embedder, [" ".join(w) for w in (words[:window], words[window:], words)])
    mean = 2 * first + second
    assert np.abs(both - mean / np.linalg.norm(mean)).max() < 1e-5


def test_pieces_fit_the_window_and_give_the_text_back(embedder):
    for text in (" ".join(sentences(60)), "x" * 4000, "\u4f60\u597d" * 600, "a " * 254, "a " * 255, ""):
        (pieces,) = _split_texts(embedder, [text])
        assert "".join(piece for piece, _ in pieces) == text
        for piece, _ in pieces:
            assert len(embedder.tokenizer(piece)["input_ids"]) <= embedder.max_seq_length


def test_texts_with_equal_tokens_have_equal_embeddings(embedder):
    texts = ["Some Words of Text", "filler", "SOME WORDS OF TEXT", "some words of text", *sentences(40)]
    vectors = embed_texts(embedder, texts)
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.array_equal(vectors[0], vectors[1])


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
