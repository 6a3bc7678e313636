"""From endpoints to numbers one can believe: generation, judge, MAUVE, statistics, report."""
