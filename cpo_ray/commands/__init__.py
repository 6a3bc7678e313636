"""Commands that need no run: the models and answers that they are pointed at may come from anywhere."""
