"""vLLM, embedders and OpenAI-compatible APIs, as sampling, serving and evaluation use them."""
