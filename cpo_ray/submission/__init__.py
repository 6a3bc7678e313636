"""Run the pipeline as a job on a Ray cluster: upload, submit, follow the log, fetch the report."""
