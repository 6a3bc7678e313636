"""Chat templates in the formats of eight families of models, written for the tests, and tokenizers that have them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpo_ray.data.tokenization import Tokenizer, load_tokenizer, train_tokenizer

Message = dict[str, Any]
TEXTS = ["Why is the sky blue? Because it scatters light. What is 2 + 3? It is 5. user assistant system model\n"] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou give answers.<|im_end|>\n{% endif %}" + CHATML
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no role system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thoughts = m.reasoning_content or '' %}{% if '</think>' in m.content %}"
    "{% set thoughts = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n{{ thoughts }}\n</think>\n\n{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """A chat template with the special tokens that it writes. `end`: the one that ends an answer."""

    template: str
    end: str
    special: tuple[str, ...]
    eos: str = "<|endoftext|>"  # of the tokenizer, which in some families is another token
    bos: str | None = None
    has_system: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Tokenizer:
        """Write a tokenizer with the template to `folder`, and load it."""
        tokenizer = train_tokenizer(TEXTS, 300)
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.special)})
        tokenizer.add_special_tokens({"eos_token": self.eos} | ({"bos_token": self.bos} if self.bos else {}))
        tokenizer.chat_template = self.template
        tokenizer.save_pretrained(folder)
        return load_tokenizer(str(folder))


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", IM),
    "smollm2": Family(SMOLLM2, "<|im_end|>", IM, eos="<|im_end|>"),
    "llama3": Family(
        LLAMA3,
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "gemma": Family(GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", has_system=False),
    "mistral": Family(MISTRAL, "</s>", ("[INST]", "[/INST]"), "</s>", "<s>", has_system=False),
    "qwen3": Family(QWEN3, "<|im_end|>", IM, eos="<|im_end|>", options={"enable_thinking": False}),
    "phi": Family(PHI, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "tools": Family(TOOLS, "<|im_end|>", IM),
}
