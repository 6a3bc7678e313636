"""Weight switching in vLLM, sentence embeddings, and a client for OpenAI-compatible APIs."""
