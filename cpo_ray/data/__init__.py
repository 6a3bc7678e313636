"""Where examples come from: readers, the split, the prompt template, tokenization."""
