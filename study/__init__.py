"""The study: does CPO help, where, and what does it cost? Preregistered, with the seed as the unit."""
