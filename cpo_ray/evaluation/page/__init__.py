"""The report's page: what a run directory holds (`run`), its charts, its sections, and the browser's HTML, CSS and JS."""
