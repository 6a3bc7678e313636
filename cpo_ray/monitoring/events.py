"""logs/events.jsonl: a run's messages and the warnings of its libraries, one JSON object per line, with run and stage."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

OURS = "cpo_ray"
log = logging.getLogger(OURS)


@contextlib.contextmanager
def recording(path: Path, run: str, stage: str) -> Iterator[None]:
    """Record our own log from INFO, other loggers from WARNING, and the stage's start, end and seconds.

    Our handler is not on the root logger, because `import ray.serve.llm` removes the root logger's handlers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = {"run": run, "stage": stage}
    ours, others = _JsonLines(path, labels, _is_ours), _JsonLines(path, labels, _is_warning_of_others)
    root = logging.getLogger()
    log.addHandler(ours)
    root.addHandler(others)
    started = time.monotonic()
    try:
        log.info("stage begins")
        yield
        log.info("stage ends", extra={"fields": {"outcome": "done", "seconds": round(time.monotonic() - started, 3)}})
    except BaseException as error:
        fields = {"outcome": type(error).__name__, "seconds": round(time.monotonic() - started, 3)}
        log.error("stage ends: %s", error, extra={"fields": fields})  # noqa: TRY400 - the caller shows the traceback
        raise
    finally:
        for logger, handler in ((log, ours), (root, others)):
            logger.removeHandler(handler)
            handler.close()


class _JsonLines(logging.FileHandler):
    """Writes records as JSON, flushed line by line."""

    def __init__(self, path: Path, labels: dict[str, str], wanted: Callable[[logging.LogRecord], bool]) -> None:
        super().__init__(path, encoding="utf-8")
        self.labels = labels
        self.addFilter(wanted)

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
    return record.levelno >= logging.INFO and record.name.split(".")[0] == OURS


def _is_warning_of_others(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and record.name.split(".")[0] != OURS
