"""Reads instruction data: one object per row, with named fields, or with the messages of a conversation."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, Any

from cpo_ray.config import FieldsConfig
from cpo_ray.data.chat import (
    ChatError,
    Conversation,
    find_messages,
    join_completion,
    read_conversation,
    read_every_answer,
    with_system,
    write_chat,
)
from cpo_ray.data.layouts import RowLayout
from cpo_ray.data.objects import FileObject, keys_of, read_objects
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, ReadingCounts

CATEGORY = "category"  # the field with the category of a row whose layout names none


class _RowError(Exception):
    """A valid object but not a usable row."""


def read_instructions(
    file: IO[bytes], name: str, fields: FieldsConfig, source: str
) -> Iterator[FileFormat | InstructionRow | BadRow | ReadingCounts]:
    """`read_rows` with fields that are named, or with conversations in place of them."""
    return read_rows(file, name, RowLayout("instructions", fields, source, has_names=True))


def read_rows(
    file: IO[bytes], name: str, layout: RowLayout
) -> Iterator[FileFormat | InstructionRow | BadRow | ReadingCounts]:
    """Stream the file's format, and for each object an InstructionRow, or a BadRow with the reason; then ReadingCounts.

    name: the file's name in messages. Whitespace around texts is removed. A context that is absent or null is empty. Raises
    DataError if the file is empty, or in a format that `read_objects` does not read.
    """
    rows = _Rows(layout)
    for found in read_objects(file, name):
        if isinstance(found, FileObject):
            yield from rows.read(found)
        else:
            yield found
    yield ReadingCounts(dict(rows.counts), rows.keys)


class _Rows:
    """Turns objects into rows, and counts."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout, self.fields = layout, layout.fields
        self.counts: Counter[str] = Counter()
        self.keys: tuple[str, ...] = ()  # of the first row without a context

    def read(self, found: FileObject) -> Iterator[InstructionRow | BadRow]:
        """The row, or one row per answer of a conversation, or why there is none."""
        try:
            rows = list(self._rows(found.value))
        except (_RowError, ChatError) as error:
            yield found.bad(str(error))
            return
        yield from (replace(row, place=found.place) for row in rows)

    def _rows(self, record: object) -> Iterator[InstructionRow]:
        if not isinstance(record, dict):
            raise _RowError(f"a JSON object is expected, not {type(record).__name__}")
        messages = self._find_messages(record)
        if messages is None:
            if self.layout.is_conversation:
                raise _RowError(f"missing key {self.fields.instruction}; found {keys_of(record)}")
            yield self._row(record)
            return
        conversations = self._conversations(record, messages)
        key = conversations[0].instruction if self.layout.every_answer else ""
        for conversation in conversations:
            row = self._row(self._flatten(record, conversation))
            # The template of a row with a context puts that into the user's message.
            chat = "" if row.context else write_chat([turn.message for turn in conversation.turns], record.get("tools"))
            yield replace(row, chat=chat, has_tools=conversation.has_tools, key=key)

    def _row(self, record: Mapping[str, Any]) -> InstructionRow:
        """The record as a row. Raises an error with the reason if a field is missing, empty or not text."""
        fields = self.fields
        category = fields.category if self.layout.has_names or fields.category else _optional_category(record)
        required = [key for key in (fields.instruction, fields.response, category) if key is not None]
        missing = [key for key in required if key not in record]
        if missing:
            raise _RowError(f"missing key {', '.join(missing)}; found {keys_of(record)}")
        texts = {key: _text(key, record[key]) for key in required}
        context = self._context(record)
        empty = [key for key in (fields.instruction, fields.response) if not texts[key]]
        if empty:
            raise _RowError(f"empty {', '.join(empty)}")
        if self.layout.has_names and fields.context is not None and fields.context not in record:
            self.counts["rows_without_context_key"] += 1
            self.keys = self.keys or tuple(record)
        return InstructionRow(
            source=self.layout.source,
            category=texts[category] if category is not None else "",
            instruction=texts[fields.instruction],
            context=context,
            response=texts[fields.response],
        )

    def _context(self, record: Mapping[str, Any]) -> str:
        key = self.fields.context
        if key is None:
            return ""
        value = record.get(key)
        return "" if value is None else _text(key, value)

    def _find_messages(self, record: Mapping[str, Any]) -> str | None:
        """The key of the row's messages, if it has any in place of the instruction."""
        key = self.fields.instruction
        if self.layout.has_names:
            return find_messages(record) if key not in record else None
        if self.layout.is_conversation:
            return key if key in record else None
        return key if isinstance(record.get(key), list) else None

    def _conversations(self, record: Mapping[str, Any], key: str) -> list[Conversation]:
        """The conversation up to its last answer, or up to each of its answers."""
        if not self.layout.has_names:
            record = with_system(record, key)
        if self.layout.name == "prompt_completion":
            record = join_completion(record, key, self.fields.response)
        if self.layout.every_answer:
            found = read_every_answer(record, key)
        else:
            found = [read_conversation(record, key, strict=not self.layout.has_names)]
        self.counts["conversations"] += 1
        self.counts["multi_turn_conversations"] += found[-1].is_multi_turn
        self.counts["unanswered_messages"] += found[-1].unanswered
        return found

    def _flatten(self, record: Mapping[str, Any], conversation: Conversation) -> dict[str, Any]:
        flat = {self.fields.instruction: conversation.instruction, self.fields.response: conversation.response}
        context = {} if self.fields.context is None else {self.fields.context: record.get(self.fields.context)}
        return {**record, **flat, **context}


def _optional_category(record: Mapping[str, Any]) -> str | None:
    return CATEGORY if isinstance(record.get(CATEGORY), str) else None


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _RowError(f"{key} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _RowError(f"{key} has half a surrogate pair, which is not a character") from None
    return value.strip()
