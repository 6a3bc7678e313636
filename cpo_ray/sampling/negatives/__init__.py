"""The kinds of negatives (the paper's section 3), one file each, and their registry."""
