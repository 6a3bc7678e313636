"""Suggestions for a word that is not known: only near ones."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6  # of difflib's similarity; below it a suggestion has nothing to do with the word


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """`; did you mean X?` with the known word that is nearest, in this form; an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=CUTOFF)
    return f"; did you mean {form.format(near[0])}?" if near else ""
