from transformers import BloomConfig, GenerationConfig

from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.sampling.reference_model import UNLIMITED, read_reference
from tests.checks.test_model_fit import TEXTS, write_model


def test_every_token_that_ends_a_generation_is_read(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(tmp_path)
    write_model(tmp_path, None)
    read = read_reference(tmp_path)
    assert (read.eos, read.other_eos, read.special) == (0, (), {0, 280})
    assert (read.context, read.vocabulary) == (256, 320)
    GenerationConfig(eos_token_id=[0, 5, 6]).save_pretrained(tmp_path)
    assert read_reference(tmp_path).other_eos == (5, 6)


def test_an_architecture_without_positions_sets_no_limit(tmp_path):
    train_tokenizer(TEXTS, 280).save_pretrained(tmp_path)
    BloomConfig(vocab_size=320, eos_token_id=0).save_pretrained(tmp_path)
    assert read_reference(tmp_path).context == UNLIMITED
