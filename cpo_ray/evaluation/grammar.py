"""Grammar lints of English text by Harper, an offline checker. The only file that imports it: an optional extra."""

from collections.abc import Sequence

from cpo_ray.errors import ConfigError


def check_grammar_extra() -> None:
    """Raise ConfigError, with the install command, if Harper is not installed."""
    try:
        import harper  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "harper":
            raise
        raise ConfigError(
            "text_metrics.grammar needs the package harper-py, an optional extra: pip install 'cpo-ray[grammar]', or set "
            "text_metrics.grammar to false"
        ) from None


def lint_rates(texts: Sequence[str]) -> list[float | None]:
    """Lints per 100 whitespace-separated words of each text (American English, plain text); None for a text without words.

    Spelling counts too. Equal texts are checked once. Raises ConfigError like `check_grammar_extra`.
    """
    check_grammar_extra()
    from harper import Language, Linter

    linter = Linter()
    lints = {text: len(linter.lint(text, language=Language.PLAINTEXT)) for text in dict.fromkeys(texts) if text.split()}
    return [100 * lints[text] / len(text.split()) if text in lints else None for text in texts]
