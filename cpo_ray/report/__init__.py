"""The report of a run or of several: page, figures, tables, model cards."""
