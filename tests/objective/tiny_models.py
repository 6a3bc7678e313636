"""Tiny random models of the architectures that `transformers` has, and what of each is longer or shorter than its window."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
WINDOW = 8  # tokens: shorter than most prompts of the tests

PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = PLAIN | {"num_key_value_heads": 2}
SLIDING = GROUPED | {"sliding_window": WINDOW}
MOE = GROUPED | {
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
BY_TYPE = SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "n_ctx": 128}
GPT |= {"bos_token_id": 1, "eos_token_id": 0}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 8, "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "mamba_d_ssm": 64, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


# name -> (model type, its configuration)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt_neo": ("gpt_neo", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": WINDOW,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128, "intermediate_size": 64,
        "bos_token_id": 1, "eos_token_id": 0,
    }),
    "gpt_neox": ("gpt_neox", PLAIN),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "codegen": ("codegen", GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "opt": ("opt", PLAIN | {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "falcon": ("falcon", PLAIN | {"alibi": False}),
    "falcon (ALiBi)": ("falcon", PLAIN | {"alibi": True}),
    "xglm": ("xglm", {
        "vocab_size": VOCABULARY, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 128,
    }),
    "biogpt": ("biogpt", PLAIN),
    "persimmon": ("persimmon", PLAIN),
    "llama": ("llama", GROUPED),
    "llama (linear RoPE)": ("llama", GROUPED | rope("linear", factor=2.0)),
    "llama (llama3 RoPE)": ("llama", GROUPED | rope(
        "llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama (YaRN)": ("llama", GROUPED | rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama (dynamic NTK)": ("llama", GROUPED | {"max_position_embeddings": 16} | rope("dynamic", factor=2.0)),
    "llama (longrope)": ("llama", GROUPED | rope(
        "longrope", factor=4.0, short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=16)),
    "llama4 text": ("llama4_text", MOE | {
        "attention_chunk_size": WINDOW, "head_dim": 8, "intermediate_size_mlp": 64, "no_rope_layers": [1, 0],
        "interleave_moe_layer_step": 1,
    }),
    "mistral": ("mistral", SLIDING),
    "ministral": ("ministral", BY_TYPE | {"head_dim": 8}),
    "ministral3": ("ministral3", GROUPED | {"head_dim": 8}),
    "mixtral": ("mixtral", MOE | {"sliding_window": None}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2 (window)": ("qwen2", SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 8}),
    "qwen3_moe": ("qwen3_moe", MOE | {"head_dim": 8}),
    "qwen3_next": ("qwen3_next", MOE | LINEAR),
    "qwen3_5": ("qwen3_5_text", GROUPED | LINEAR),
    "qwen3_5_moe": ("qwen3_5_moe_text", MOE | LINEAR),
    "gemma": ("gemma", GROUPED | {"head_dim": 8}),
    "gemma2": ("gemma2", BY_TYPE | {"head_dim": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
                                    "query_pre_attn_scalar": 8}),
    "gemma3 text": ("gemma3_text", BY_TYPE | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3n text": ("gemma3n_text", BY_TYPE | {
        "head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4,
        "altup_num_inputs": 2, "num_kv_shared_layers": 0, "intermediate_size": [64, 64],
        "activation_sparsity_pattern": [0.0, 0.0],
    }),
    "gemma4 text": ("gemma4_text", BY_TYPE | {
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
    }),
    "phi": ("phi", PLAIN),
    "phi3": ("phi3", SLIDING),
    "phimoe": ("phimoe", MOE | {"sliding_window": WINDOW}),
    "stablelm": ("stablelm", GROUPED | {"partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", SLIDING),
    "granite": ("granite", GROUPED | {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
                                      "embedding_multiplier": 2.0}),
    "granitemoe": ("granitemoe", MOE | {"logits_scaling": 4.0}),
    "granitemoehybrid": ("granitemoehybrid", MOE | MAMBA | {
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16}),
    "cohere": ("cohere", GROUPED | {"logit_scale": 0.3}),
    "cohere2": ("cohere2", BY_TYPE | {"logit_scale": 0.3}),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
    "olmo3": ("olmo3", BY_TYPE),
    "olmoe": ("olmoe", MOE),
    "exaone4": ("exaone4", BY_TYPE | {"sliding_window_pattern": 2}),
    "gpt_oss": ("gpt_oss", MOE | BY_TYPE | {"head_dim": 8}),
    "deepseek_v2": ("deepseek_v2", MOE | MLA | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                                                "topk_method": "greedy", "num_key_value_heads": 4, "n_shared_experts": 1}),
    "deepseek_v3": ("deepseek_v3", MOE | MLA | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                                                "num_key_value_heads": 4}),
    "glm": ("glm", GROUPED | {"head_dim": 8}),
    "glm4": ("glm4", GROUPED | {"head_dim": 8}),
    "glm4_moe": ("glm4_moe", MOE | {"head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "nemotron": ("nemotron", GROUPED),
    "nemotron_h": ("nemotron_h", GROUPED | {
        "layers_block_type": ["mamba", "attention"], "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 4,
        "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "conv_kernel": 4, "use_mamba_kernels": False,
    }),
    "smollm3": ("smollm3", GROUPED),
    "lfm2": ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "falcon_h1": ("falcon_h1", GROUPED | MAMBA),
    "falcon_mamba": ("falcon_mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
                                      "use_mambapy": False}),
    "mamba": ("mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    "mamba2": ("mamba2", {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
                          "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    "jamba": ("jamba", MOE | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                                      "expert_layer_offset": 1}),
    "bamba": ("bamba", GROUPED | MAMBA | {"attn_layer_indices": [1]}),
    "zamba2": ("zamba2", PLAIN | MAMBA | {"layers_block_type": ["mamba", "hybrid"], "mamba_headdim": 16,
                                          "n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1, "chunk_size": 8}),
    "recurrent_gemma": ("recurrent_gemma", GROUPED | {
        "head_dim": 8, "block_types": ["recurrent", "attention"], "attention_window_size": WINDOW, "lru_width": 32,
    }),
    "minimax": ("minimax", MOE | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}),
    "rwkv": ("rwkv", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 128}),
    "helium": ("helium", GROUPED | {"head_dim": 8}),
    "ernie4_5": ("ernie4_5", GROUPED | {"head_dim": 8}),
    "ernie4_5_moe": ("ernie4_5_moe", MOE | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", GROUPED | {"head_dim": 8}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", MOE | {"head_dim": 8, "moe_topk": 2}),
    "dots1": ("dots1", MOE | BY_TYPE | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "seed_oss": ("seed_oss", GROUPED | {"head_dim": 8}),
    "apertus": ("apertus", GROUPED),
    "arcee": ("arcee", GROUPED),
    "bitnet": ("bitnet", GROUPED),
    "nanochat": ("nanochat", GROUPED),
    "diffllama": ("diffllama", GROUPED),
    "ctrl": ("ctrl", {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "dff": 64}),
    "minicpm3": ("minicpm3", GROUPED | MLA | {"dim_model_base": 16, "num_key_value_heads": 4}),
    "modernbert_decoder": ("modernbert-decoder", PLAIN | {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2}),
    "openai-gpt": ("openai-gpt", GPT),
    "bert (decoder)": ("bert", PLAIN | {"is_decoder": True}),
    "jetmoe": ("jetmoe", MOE | {"kv_channels": 8}),
    "doge": ("doge", GROUPED | {"head_dim": 8}),
    "lfm2_moe": ("lfm2_moe", MOE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "olmo_hybrid": ("olmo_hybrid", GROUPED | LINEAR),
    "deepseek_v32": ("deepseek_v32", MOE | MLA | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                                                  "index_n_heads": 16, "index_head_dim": 8, "index_topk": 8,
                                                  "num_key_value_heads": 4}),
    "afmoe": ("afmoe", MOE | BY_TYPE | {"head_dim": 8}),
    "mimo_v2_flash": ("mimo_v2_flash", MOE | {"head_dim": 8}),
    "flex_olmo": ("flex_olmo", MOE),
    "vaultgemma": ("vaultgemma", BY_TYPE | {"head_dim": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "exaone_moe": ("exaone_moe", MOE | BY_TYPE | {"head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
                                                  "num_shared_experts": 1}),
    "minimax_m2": ("minimax_m2", MOE | {"head_dim": 8}),
    "cwm": ("cwm", BY_TYPE | {"head_dim": 8}),
    "hyperclovax": ("hyperclovax", GROUPED),
    "gemma3n text (shared keys)": ("gemma3n_text", SLIDING | {
        "head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4,
        "altup_num_inputs": 2, "num_kv_shared_layers": 2, "intermediate_size": [64] * 4, "num_hidden_layers": 4,
        "activation_sparsity_pattern": [0.0] * 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    }),
    "gemma4 text (shared keys)": ("gemma4_text", SLIDING | {
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    }),
    "xlnet": ("xlnet", {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "reformer": ("reformer", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "is_decoder": True, "axial_pos_embds": False,
        "max_position_embeddings": 128, "attn_layers": ["local", "lsh"], "num_attention_heads": 2, "feed_forward_size": 64,
        "local_attn_chunk_length": WINDOW, "lsh_attn_chunk_length": WINDOW, "num_buckets": 4, "attention_head_size": 16,
    }),
}  # fmt: skip


def tiny_architecture(name: str, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """A random model of an entry of TINY. Biases and sinks are random too: at zero they would hide what ignores them."""
    kind, settings = TINY[name]
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    if any("Experts" in type(module).__name__ for module in model.modules()):
        model.set_experts_implementation("eager")  # the others cannot do float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.to(dtype).eval()
