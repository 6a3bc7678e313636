"""Requests for unhelpful negatives to a local HTTP server."""

import re

from cpo_ray.sampling.negatives.unhelpful import add_unhelpful
from cpo_ray.sampling.selection import Selection
from tests.sampling.example_rows import EOS, encode, make_config, make_table

ROWS = 12
INVALID = [{}, {"choices": []}, {"error": {"message": "overloaded"}}, {"choices": [{"message": {"content": 3}}]}]


class Tokenizer:
    """One token per letter; `<eos>` in a text stays text."""

    eos_token_id = EOS

    def __call__(self, texts, add_special_tokens, split_special_tokens, verbose):
        assert (add_special_tokens, split_special_tokens) == (False, True)
        return {"input_ids": [[1 + ord(letter) % 90 for letter in text] for text in texts]}


def chat_reply(text, usage=None, finish_reason="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"choices": [choice]} | ({"usage": usage} if usage else {})


def gold_in(body):
    """The ground truth in a request."""
    return re.search(r" Response: (.*?) \n Not helpful", body["messages"][0]["content"], re.DOTALL)[1]


def different(body):
    """A reply that differs for every seed."""
    return chat_reply(
        f" {gold_in(body)[1:4]}{body['seed'] % 9973:04d}\n", {"prompt_tokens": 10, "completion_tokens": 4}
    )


def rows(texts=None):
    texts = texts or [f"{number:02d} is it" for number in range(ROWS)]
    table = make_table([encode(text) for text in texts])
    column = table.column_names.index("response")
    return Selection(table.set_column(column, "response", [texts]), 0, {})


def write(service, folder, selection=None, *, count=1, on_bad_row="error", redraws=3, **settings):
    config = make_config(
        negatives={"unhelpful": count, "batch": 1, "meanfield": 0, "truncation": 0},
        unhelpful={"url": service.url, "model": "some-llm"} | settings,
        on_bad_row=on_bad_row,
        redraws=redraws,
    )
    selection, summary = add_unhelpful(selection or rows(), config, Tokenizer(), folder / "unhelpful.answers")
    return selection, summary, config


def negatives(selection):
    return selection.table["unhelpful"].to_pylist()
