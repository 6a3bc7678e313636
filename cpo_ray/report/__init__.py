"""The report of one or several runs: HTML page, figures, tables, model cards."""
