"""Stage `data`: readers, splits, the prompt template, tokenization."""
