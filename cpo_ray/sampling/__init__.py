"""From examples to groups: negatives, reference log-probs, ranks."""
