"""Conversations in JSON lines or Parquet: a row's messages, rendered by the tokenizer's chat template.

A row has `messages`, each with `role` and `content`, or `conversations`, each with `from` and `value` (ShareGPT's).
A row's `tools` are passed to the template too. No begin or end tokens are added: the template writes its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.data import reading
from giraffe_jax.data.files import Document, FileKind, json_rows, parquet_rows
from giraffe_jax.tokenizer.chat import ASSISTANT, ChatTemplate

FIELDS = ("messages", "conversations")
TOOLS = "tools"
ROLES = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bard": ASSISTANT}  # ShareGPT's names
KNOWN = ("system", "developer", "user", ASSISTANT, "tool", "function", "ipython")


def read_file(kind: FileKind, file: Path, template: ChatTemplate, where: str = "source") -> Iterator[Document]:
    """Yields the conversations of a file in order, each with the character ranges of its answers.

    Raises ConfigError naming file and line for a row that is not a conversation, or that the template rejects.
    """
    rows = json_rows(file, where) if kind == "jsonl" else parquet_rows(file, (*FIELDS, TOOLS), where)
    for number, row in rows:
        place = f"{where}: {file}:{number}"
        try:
            text, answers = template.render(messages_of(row, place), row.get(TOOLS))
        except ConfigError as e:
            raise e if str(e).startswith(place) else ConfigError(f"{place}: {e}") from e
        yield Document(f"{file.name}:{number}", text, answers)


def messages_of(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns a row's messages as templates take them: `role`, `content`, and all other keys that are not null.

    Raises ConfigError, naming `where`, if the row is not a conversation.
    """
    field = next((name for name in FIELDS if row.get(name) is not None), None)
    if field is None:
        raise ConfigError(f"{where} has neither 'messages' nor 'conversations'; it has {sorted(row)}")
    value = row[field]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {field!r} is {reading.in_words(value)}; it takes a list of messages, one at least")
    return [_message(message, f"{where}: {field}[{i}]") for i, message in enumerate(value)]


def _message(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {reading.in_words(entry)}; a message is an object with role and content")
    message = {key: value for key, value in entry.items() if value is not None}  # parquet has null for absent keys
    role, content = message.pop("role", message.pop("from", None)), message.pop("content", message.pop("value", None))
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if role not in KNOWN:
        raise ConfigError(
            f"{where}: the role is {role!r}; known are {', '.join((*KNOWN, *ROLES))}.{nearest(str(role), list(KNOWN))}"
        )
    if content is None and message:  # a message of tool calls may have no content
        return {"role": role, **message}
    if not isinstance(content, str):
        raise ConfigError(f"{where}: the content is {reading.in_words(content)}; it takes a string")
    return {"role": role, "content": content, **message}
