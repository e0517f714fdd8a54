"""A tokenizer's chat template: renders conversations as the model reads them, and locates the answers in the text.

Templates are untrusted code, so they run as in transformers, in Jinja's immutable sandbox: without files, modules or
attributes that begin with an underscore. Loops, ranges and the length of the output are limited too. Templates do not
get today's date, which would change the training rows from one day to the next.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer.base import JsonTokenizer
from giraffe_jax.tokenizer.directory import CONFIG, TEMPLATE

ASSISTANT = "assistant"
LARGEST = 2**20  # characters of a template
STEPS = 10_000  # most loop iterations and macro calls per message; also the longest range
WIDEST = 64  # most characters of output per character of input: template, messages and tools


class Rendered(NamedTuple):
    """A conversation's text, and the character ranges [start, stop) of the answers in it."""

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled chat template; `fingerprint` is a sha256 of the template and its special tokens."""

    def __init__(self, text: str, names: Mapping[str, str] = {}, where: str = "tokenizer"):
        """names: the special tokens that it may write, such as bos_token. where: the place that errors name.

        Raises ConfigError if it is not a valid template, or jinja2 is not installed.
        """
        self._names, self._where, self._size = dict(names), where, len(text)
        decides = json.dumps([text, sorted(names.items())])
        self.fingerprint = hashlib.sha256(decides.encode()).hexdigest()
        if len(text) > LARGEST:
            raise ConfigError(f"{where}: the chat template has {len(text):,} characters; {LARGEST:,} is the most")
        self._spans: list[tuple[int, int]] = []
        self._written = self._steps = 0
        try:
            self._template, self.marks = _compiled(text, self._step, self._mark, where)
        except ConfigError:
            raise
        except Exception as e:  # syntax errors of Jinja's, and of Python where it is nested too deeply
            raise ConfigError(f"{where}: the chat template cannot be read ({_said(e)})") from e

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> Rendered:
        """Returns the text that the template writes for a conversation, with the ranges of its answers.

        As in transformers, answers are what is between `{% generation %}` and `{% endgeneration %}`. In a template
        without these, the answer of message i is what rendering messages 0 .. i adds to rendering messages 0 .. i - 1
        with the generation prompt. It includes the token that ends the turn, but not the line break that many
        templates write after it.

        Raises ConfigError if the template fails or writes too much, or if its text for the first messages is not the
        beginning of its text for the whole conversation.
        """
        text = self._render(messages, tools, False)
        if self.marks:
            return Rendered(text, tuple(self._spans))
        answers = []
        for i, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._render(messages[:i], tools, True)
            after = text if i + 1 == len(messages) else self._render(messages[: i + 1], tools, False)
            if not (text.startswith(after) and after.startswith(before)):
                raise ConfigError(
                    f"{self._where}: the chat template does not say where answers stand: its text for the first "
                    f"{i + 1} messages, or for the first {i} with the generation prompt, is not the beginning of its "
                    "text for all. Put {% generation %} ... {% endgeneration %} around what the assistant writes."
                )
            answer, content = after[len(before) :], str(message.get("content") or "").strip()
            behind = answer.rpartition(content)[2] if content else answer
            # If only white space follows the content, it is what ends the turn, and part of the answer.
            stop = len(after.rstrip()) if behind.strip() else len(after)
            answers.append((len(before), max(stop, len(before))))
        return Rendered(text, tuple(answers))

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Any, prompt: bool) -> str:
        self._spans, self._written = [], 0
        self._steps = STEPS * (len(messages) + 1)
        most = WIDEST * (self._size + len(json.dumps([*messages, tools], default=str)))
        blocks: list[str] = []
        try:
            context = dict(messages=list(messages), tools=tools, documents=None, add_generation_prompt=prompt)
            for block in self._template.generate(**self._names, **context):
                blocks.append(block)
                self._written += len(block)
                if self._written > most:
                    raise ValueError(f"it writes more than {most:,} characters")
        except Exception as e:  # any Python error in the template, and its raise_exception
            raise ConfigError(f"{self._where}: the chat template fails ({_said(e)})") from e
        return "".join(blocks)

    def _mark(self, written: str) -> None:
        self._spans.append((self._written, self._written + len(written)))

    def _step(self) -> str:
        self._steps -= 1
        if self._steps < 0:
            raise ValueError(f"its loops take more than {STEPS:,} turns for a message")
        return ""


def template_of(tokenizer: Any, where: str) -> ChatTemplate:
    """Returns the chat template of a tokenizer: chat_template.jinja, or `chat_template` of tokenizer_config.json
    ("default" of several).

    Raises ConfigError, naming `where`, for a tokenizer without a template, or one that gives no offsets of its tokens.
    """
    files = tokenizer.files()
    config = json.loads(files.get(CONFIG, b"{}"))
    text = config.get("chat_template")
    if isinstance(text, list):
        text = {entry.get("name"): entry.get("template") for entry in text}.get("default")
    if TEMPLATE in files:
        text = files[TEMPLATE].decode("utf-8")
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: the tokenizer has no chat template to render conversations; put {TEMPLATE} beside its files"
        )
    if not isinstance(tokenizer, JsonTokenizer):
        kind = type(tokenizer).__name__
        raise ConfigError(f"{where}: conversations take a tokenizer with a tokenizer.json, this is a {kind}")
    names = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(text, names, where)


def answer_tokens(offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Returns, for each token, whether it overlaps an answer; both arguments are character ranges [start, stop)."""
    return [any(start < end and stop > begin for begin, end in answers) for start, stop in offsets]


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _compiled(text: str, step: Callable[[], str], mark: Callable[[str], None], where: str) -> tuple[Any, bool]:
    """Returns (the template, whether it marks answers). `step` is called in each loop iteration and macro call; `mark`
    with the text of each marked answer."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as e:
        raise ConfigError(
            f'{where}: a chat template takes jinja2, which is not here: pip install "jinja2>=3.1.6"'
        ) from e
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < (3, 1, 6):  # older versions have known sandbox escapes
        raise ConfigError(f'{where}: jinja2 {jinja2.__version__} is too old: pip install -U "jinja2>=3.1.6"')

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            written = caller()
            mark(written)
            return written

    class Bounded(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            tree = super()._parse(source, name, filename)
            for node in (*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)):
                call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if isinstance(x, str | list | tuple) else abs(x) for x in (left, right)]
            if operator == "**" or sizes[0] * sizes[1] > LARGEST:
                raise ValueError(f"{operator} makes more than {LARGEST:,}")
            return super().call_binop(context, operator, left, right)

    class Names(jinja2.utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}")
            super().__setitem__(name, value)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        indent = min(indent, 16) if isinstance(indent, int) else None
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def numbers(*bounds: int) -> range:
        if len(values := range(*bounds)) > STEPS:
            raise ValueError(f"a range of more than {STEPS:,}")
        return values

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.step = step  # type: ignore[attr-defined]
    environment.filters["tojson"] = to_json
    environment.globals = dict(range=numbers, namespace=Names, raise_exception=refuse, dict=lambda **entries: entries)
    marks = any(
        isinstance(node.call.node, nodes.ExtensionAttribute)
        for node in environment.parse(text).find_all(nodes.CallBlock)
        if isinstance(node.call, nodes.Call)
    )
    return environment.from_string(text), marks
