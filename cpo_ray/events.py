"""logs/events.jsonl: what a run said, and what its libraries warned of, one JSON object a line with run and stage."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

OURS = "cpo_ray"
log = logging.getLogger(OURS)


@contextlib.contextmanager
def recording(path: Path, run: str, stage: str) -> Iterator[None]:
    """Append our own log from INFO, and everyone else's from WARNING, with the stage's beginning, end and seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _JsonLines(path, {"run": run, "stage": stage})
    root = logging.getLogger()
    root.addHandler(handler)
    started = time.monotonic()
    try:
        log.info("stage begins")
        yield
        log.info("stage ends", extra={"fields": {"outcome": "done", "seconds": round(time.monotonic() - started, 3)}})
    except BaseException as error:
        fields = {"outcome": type(error).__name__, "seconds": round(time.monotonic() - started, 3)}
        log.error("stage ends: %s", error, extra={"fields": fields})  # noqa: TRY400 - the traceback is the caller's
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


class _JsonLines(logging.FileHandler):
    """Writes records as JSON, flushed line by line."""

    def __init__(self, path: Path, labels: dict[str, str]) -> None:
        super().__init__(path, encoding="utf-8")
        self.labels = labels
        self.addFilter(lambda record: record.levelno >= (logging.INFO if _is_ours(record) else logging.WARNING))

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self.labels,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=False)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == OURS
