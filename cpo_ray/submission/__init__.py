"""Run the pipeline from outside: as a job on a Ray cluster (upload, submit, follow, fetch the report), or as a sweep."""
