"""A tokenizer's chat template: conversations written out as the model reads them, and where the answers stand.

The template is text of whoever made the tokenizer, so it runs as transformers runs it: in Jinja's immutable sandbox,
which gives it no file, no module and no attribute that begins with an underscore. Here its loops, its ranges and the
length of what it writes are bounded too. Today's date is not given to it: rows would change from one day to the next.
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
STEPS = 10_000  # turns of loops and calls of macros, for each message; the longest range as well
WIDEST = 64  # characters written, at most, for each that went in: template, messages and tools


class Rendered(NamedTuple):
    """A conversation's text, and the stretches [start, stop) of its characters that are answers."""

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled chat template; `fingerprint` is a sha256 of what decides the text of a conversation."""

    def __init__(self, text: str, names: Mapping[str, str] = {}, where: str = "tokenizer"):
        """names: the special tokens that it may write, such as bos_token. where: the place that errors name.

        Raises ConfigError where it is no template, or jinja2 is not installed.
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
        """The conversation as the template writes it, and where its answers stand.

        Answers are what stands between `{% generation %}` and `{% endgeneration %}` where the template has them, as in
        transformers. Where not, the i-th message's answer begins where the text of the messages before it ends, with
        the words that ask for an answer, and ends where the text of the messages up to it does: after the token that
        ends the turn, and before the line break that many templates write behind it.

        Raises ConfigError where the template fails, writes too much, or does not write a conversation's beginning as
        the beginning of its text.
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
                    f"{self._where}: the chat template does not say where answers stand: what it writes of the first "
                    f"{i + 1} messages, or of the {i} before that with the prompt for an answer, is not how the whole "
                    "begins. Give it {% generation %} ... {% endgeneration %} around what the assistant writes."
                )
            answer, content = after[len(before) :], str(message.get("content") or "").strip()
            behind = answer.rpartition(content)[2] if content else answer
            # Where nothing but blanks stands behind the content, they are all that ends the turn.
            stop = len(after.rstrip()) if behind.strip() else len(after)
            answers.append((len(before), max(stop, len(before))))
        return Rendered(text, tuple(answers))

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Any, prompt: bool) -> str:
        self._spans, self._written = [], 0
        self._steps = STEPS * (len(messages) + 1)
        most = WIDEST * (self._size + len(json.dumps([*messages, tools], default=str)))
        blocks: list[str] = []
        try:
            given = dict(messages=list(messages), tools=tools, documents=None, add_generation_prompt=prompt)
            for block in self._template.generate(**self._names, **given):
                blocks.append(block)
                self._written += len(block)
                if self._written > most:
                    raise ValueError(f"it writes more than {most:,} characters")
        except Exception as e:  # whatever a template does wrong in Python, or refuses by raise_exception
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
    """The chat template of a tokenizer: chat_template.jinja, or `chat_template` of tokenizer_config.json ("default" of
    several).

    Raises ConfigError, naming `where`, for a tokenizer without one or one that does not say where its tokens stand.
    """
    files = tokenizer.files()
    config = json.loads(files.get(CONFIG, b"{}"))
    text = config.get("chat_template")
    if isinstance(text, list):
        text = {one.get("name"): one.get("template") for one in text}.get("default")
    if TEMPLATE in files:
        text = files[TEMPLATE].decode("utf-8")
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: the tokenizer has no chat template to write conversations with; put {TEMPLATE} beside its files"
        )
    if not isinstance(tokenizer, JsonTokenizer):
        kind = type(tokenizer).__name__
        raise ConfigError(f"{where}: conversations take a tokenizer with a tokenizer.json, this is a {kind}")
    names = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(text, names, where)


def answer_tokens(offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens have a character of an answer; `offsets` are the characters [start, stop) of each token."""
    return [any(start < end and stop > begin for begin, end in answers) for start, stop in offsets]


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _compiled(text: str, step: Callable[[], str], mark: Callable[[str], None], where: str) -> tuple[Any, bool]:
    """The template, and whether it marks answers. `step` is called in each turn of a loop and each macro."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as e:
        raise ConfigError(
            f'{where}: a chat template takes jinja2, which is not here: pip install "jinja2>=3.1.6"'
        ) from e
    found = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if found < (3, 1, 6):  # from where its sandbox has no known hole
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
        if len(made := range(*bounds)) > STEPS:
            raise ValueError(f"a range of more than {STEPS:,}")
        return made

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.step = step  # type: ignore[attr-defined]
    environment.filters["tojson"] = to_json
    environment.globals = dict(range=numbers, namespace=Names, raise_exception=refuse, dict=lambda **given: given)
    marks = any(
        isinstance(node.call.node, nodes.ExtensionAttribute)
        for node in environment.parse(text).find_all(nodes.CallBlock)
        if isinstance(node.call, nodes.Call)
    )
    return environment.from_string(text), marks
