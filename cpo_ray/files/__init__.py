"""Files from outside: compression, text encodings, JSON values."""
