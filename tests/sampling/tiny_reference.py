"""A small tokenizer, a tiny reference model and about a hundred rows, for end-to-end tests."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cpo_ray.records import EXAMPLE_SCHEMA, end_response

ROWS, CONTEXT, MAX_RESPONSE = 97, 64, 16
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "apples", "pears", "count"]
WORDS += ["sort", "reverse", "the", "a", "of", "are", "there", "and"]


def make_tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def write_reference(path, tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.get_output_embeddings().weight.data.mul_(8)  # a distribution that is not flat
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def write_data(folder, tokenizer):
    """97 rows. Row 40 has a one-token response, row 7 one that is cut; row 3 has a prompt longer than the context."""
    rng = torch.Generator().manual_seed(5)

    def words(low, high):
        size = int(torch.randint(low, high, (1,), generator=rng))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (size,), generator=rng).tolist())

    rows = []
    for number in range(ROWS):
        prompt = words(3, 9) if number != 3 else " ".join(WORDS * 4)
        response = {40: "a", 7: " ".join(WORDS)}.get(number) or words(3, 7)
        response_ids = end_response(tokenizer.encode(response), tokenizer.eos_token_id, MAX_RESPONSE)
        rows.append(
            {
                "id": f"{number:016x}",
                "source": "test",
                "category": "",
                "prompt": prompt,
                "response": response,
                "prompt_ids": tokenizer.encode(prompt),
                "response_ids": response_ids,
            }
        )
    (folder / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA), folder / "train" / "part-00000.parquet")
