"""The kinds of negatives (the paper's section 3), a file each, and the registry that finds them."""
