"""Directories of tokenizers, made by variation, against transformers: the same ids, or a refusal that says why."""

import json
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.evals import filling
from giraffe_jax.inference import LM
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import begun, load_tokenizer
from giraffe_jax.tokenizer.to_gguf import describe

WORDS = "the giraffe ate all of the highest leaves while other animals were waiting below for rain".split()


def added(content, **changes):
    return (
        dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) | changes
    )


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece BPE model that normalises text and has a piece of the user's."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 8)) for _ in range(400)))
    spm.SentencePieceTrainer.Train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=360, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, user_defined_symbols=["<sep>"],
    )  # fmt: skip
    return (folder / "m.model").read_bytes()


def llama_json() -> dict:
    """A tokenizer.json as Llama 2's are: bytes, pieces, a normalizer that writes spaces as U+2581."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, 8)) for _ in range(200)]
    trained.train_from_iterator(text, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {t: i for i, t in enumerate([*first, *sorted(model["vocab"], key=model["vocab"].get)])}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    undo = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added(first[i])} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*undo, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model
        | {"vocab": vocab, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None},
    }


def bytes_json(*, digits=False, nfc=False, prefix=False) -> dict:
    """A tokenizer.json of bytes, as GPT-2's, or with what SmolLM and GPT-NeoX do else."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = step = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    rng = np.random.default_rng(0)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tok.train_from_iterator([" ".join(rng.choice(WORDS, 8)) + " 12345" for _ in range(200)], trainer)
    if digits:
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), step])
    if nfc:
        tok.normalizer = normalizers.NFC()
    return json.loads(tok.to_str())


NAMES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
LLAMA = dict(tokenizer_class="LlamaTokenizer", **NAMES)
FAST = dict(tokenizer_class="PreTrainedTokenizerFast", **NAMES)
# What a directory holds: "json" or "model", tokenizer_config.json, further files by name.
DIRECTORIES = {
    "as it is": ("json", FAST, {}),
    "Llama's class": ("json", LLAMA, {}),
    "legacy": ("json", LLAMA | {"legacy": True}, {}),
    "no space in front": ("json", LLAMA | {"legacy": True, "add_prefix_space": False}, {}),
    "split special tokens": ("json", FAST | {"split_special_tokens": True}, {}),
    "added_tokens_decoder": (
        "json",
        FAST
        | {
            "added_tokens_decoder": {"NEXT": added("<|im_start|>"), "NEXT+1": added("<tool>", lstrip=True, rstrip=True)}
        },
        {},
    ),
    "added_tokens.json, special_tokens_map.json": (
        "json",
        FAST,
        {
            "added_tokens.json": {"<|im_start|>": "NEXT", "<tool>": "NEXT+1"},
            "special_tokens_map.json": {"extra_special_tokens": ["<|im_start|>"], "pad_token": added("<pad>")},
        },
    ),
    "the older key in special_tokens_map.json": (
        "json",
        LLAMA,
        {
            "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>"]},
            "added_tokens.json": {"<tool>": "NEXT"},
        },
    ),
    "additional_special_tokens, Llama's class": (
        "json",
        LLAMA | {"additional_special_tokens": ["<|im_start|>", "<tool>"], "image_token": "<image>"},
        {},
    ),
    "Code Llama's class": (
        "json",
        dict(tokenizer_class="CodeLlamaTokenizerFast", legacy=True, additional_special_tokens=["<tool>"]),
        {},
    ),
    "Mistral's model, Llama's class": (
        "json",
        LLAMA | {"legacy": True},
        {"config.json": dict(model_type="mistral", bos_token_id=1, eos_token_id=2)},
    ),
    "the class in config.json": (
        "json",
        NAMES,
        {"config.json": dict(model_type="llama", tokenizer_class="LlamaTokenizer", bos_token_id=1, eos_token_id=2)},
    ),
    "GPT-2's class": ("bytes", dict(tokenizer_class="GPT2Tokenizer", extra_special_tokens=["<s>"]), {}),
    "GPT-2's class, names": ("bytes", NAMES | dict(tokenizer_class="GPT2TokenizerFast", unk_token=None), {}),
    "GPT-NeoX's class": ("nfc", dict(tokenizer_class="GPTNeoXTokenizer", extra_special_tokens=["<s>"]), {}),
    "a SentencePiece model": ("model", LLAMA | {"add_bos_token": True}, {}),
    "a SentencePiece model, added_tokens_decoder": (
        "model",
        LLAMA | {"legacy": True, "added_tokens_decoder": {"NEXT": added("<|im_start|>", normalized=True)}},
        {},
    ),
    "a SentencePiece model, added_tokens.json": (
        "model",
        LLAMA | {"legacy": False, "additional_special_tokens": ["<tool>"]},
        {"added_tokens.json": {"<tool>": "NEXT"}},
    ),
}


def strings():
    """300 texts: borders of added tokens, runs of spaces, bytes, scripts, combining marks, controls."""
    rng = np.random.default_rng(1)
    parts = [
        *(
            "<s>",
            "</s>",
            "<unk>",
            "<|im_start|>",
            "<tool>",
            "<pad>",
            "<image>",
            "<sep>",
            "<0x41>",
            "▁",
            " ",
            "  ",
            "\n",
        ),
        *(
            "\t",
            "\r\n",
            "\u00a0",
            "\u3000",
            "\u200d",
            "\ufeff",
            "e\u0301",
            "é",
            "½",
            "ﬁ",
            "٣",
            "日本",
            "🦒",
            "👩‍👧",
            "\x00",
        ),
        *("\x7f", "\U0010ffff", "’", "Zürich", "русский", "עברית", "हिन्दी", ".", ",", "<", ">", "|", "A", "x", "I'm"),
        *WORDS,
    ]
    return ["", *parts, *("".join(rng.choice(parts, rng.integers(2, 9))) for _ in range(299 - len(parts)))]


def write(folder, name, pieces):
    kind, config, files = DIRECTORIES[name]
    if kind != "model":
        content = llama_json() if kind == "json" else bytes_json(nfc=kind == "nfc")
        size = len(content["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        import sentencepiece

        size = sentencepiece.SentencePieceProcessor(model_proto=pieces).GetPieceSize()
        (folder / "tokenizer.model").write_bytes(pieces)
    (folder / "config.json").write_text(json.dumps(dict(model_type="llama", bos_token_id=1, eos_token_id=2)))
    for file, content in ({"tokenizer_config.json": config} | files).items():
        text = json.dumps(content).replace('"NEXT+1":', f'"{size + 1}":').replace('"NEXT":', f'"{size}":')
        (folder / file).write_text(text.replace('"NEXT+1"', str(size + 1)).replace('"NEXT"', str(size)))
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize("name", DIRECTORIES)
def test_ids_are_those_of_transformers_and_an_export_keeps_them(tmp_path, name, pieces):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    folder = write(tmp_path / "in", name, pieces)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for file, content in ours.files().items():
        (tmp_path / "out" / file).write_bytes(content)
    (tmp_path / "out" / "config.json").write_text((folder / "config.json").read_text())
    exported, again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    texts = strings()
    assert len(texts) == 300
    for text in [*texts, "".join(texts)]:  # short and long ones are read in two ways
        want = theirs.encode(text, add_special_tokens=False)
        for reader in (ours, again):
            assert reader.encode(text) == want, text
        assert exported.encode(text, add_special_tokens=False) == want, text
    assert DIRECTORIES[name][0] == "model" or ours.prefix == again.prefix == tuple(theirs.encode(""))
    assert ours.vocab_size == len(theirs) and ours.fingerprint == again.fingerprint


@pytest.mark.parametrize("name", DIRECTORIES)
def test_added_tokens_of_every_place_are_one_id(tmp_path, name, pieces):
    tok = load_tokenizer(write(tmp_path, name, pieces))
    text = json.dumps(DIRECTORIES[name][1:])
    for token in ("<|im_start|>", "<tool>", "<image>", "<pad>", "<s>"):
        one = (token in text or token == "<s>") and "split_special_tokens" not in text
        assert (len(tok.encode(token)) == 1) == one, token


def changed(tmp_path, **config):
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama_json()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(FAST | config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(added_tokens_decoder={"900": added("<x>")}), "added token '<x>' id 900, but it gets 3"),
        (dict(added_tokens_decoder={"a": added("<x>")}), "added_tokens_decoder must map ids to tokens, got 'a'"),
        (dict(added_tokens_decoder=[]), "added_tokens_decoder must be a mapping"),
        (dict(add_prefix_space="no"), "add_prefix_space must be true or false, got 'no'"),
        (dict(do_lower_case=True), "do_lower_case is 'True', allowed is False: letters"),
        (dict(auto_map={"AutoTokenizer": ["a.B", None]}), "auto_map is .*its own code is not run"),
        (dict(sp_model_kwargs={"enable_sampling": True}), "sp_model_kwargs is .*sampling"),
        (dict(additional_special_tokens=[3]), "extra_special_tokens: expected a token's text"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(changed(tmp_path, **config))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("GPT2Tokenizer", bytes_json(digits=True)),
        ("GPT2TokenizerFast", bytes_json(prefix=True)),
        ("GPTNeoXTokenizer", bytes_json()),
        ("Qwen2Tokenizer", bytes_json()),
        ("CodeLlamaTokenizer", bytes_json()),
    ],
)
def test_a_class_that_says_other_than_tokenizer_json_is_refused(tmp_path, name, content):
    """transformers follows the class, and gives other ids than the file; "PreTrainedTokenizerFast" is the file's."""
    transformers = pytest.importorskip("transformers")

    def write(class_):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_}))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    write(name)
    with pytest.raises(ConfigError, match=f"tokenizer_class is '{name}'.* write 'PreTrainedTokenizerFast'"):
        load_tokenizer(tmp_path)
    texts = ["the giraffe 12345", "e\u0301", "12345 I'm"]
    theirs = (
        [transformers.AutoTokenizer.from_pretrained(tmp_path).encode(t) for t in texts] if "Code" not in name else []
    )
    write("PreTrainedTokenizerFast")
    ours = load_tokenizer(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [ours.encode(t) for t in texts] == [again.encode(t) for t in texts] != theirs


def test_added_tokens_beside_a_model_of_no_class_are_refused(tmp_path, pieces):
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 400}))
    with pytest.raises(ConfigError, match="added token '<tool>' beside tokenizer.model: .*tokenizer_class"):
        load_tokenizer(tmp_path)


def test_ids_without_a_piece_decode_to_nothing(tmp_path, pieces):
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    alone = load_tokenizer(tmp_path)
    beside = tmp_path / "beside"
    beside.mkdir()
    for tok in (alone, load_tokenizer(changed(beside))):
        ids = tok.encode("the giraffe")
        far = [tok.vocab_size, *ids, 2**31 - 1, 2**40, -1]
        assert tok.decode(np.array(far)) == tok.decode(ids) == "the giraffe"


def test_a_model_that_sentencepiece_read_is_read_so_again(tmp_path, pieces):
    """Normalised text, which transformers leaves as it is, shows who read it."""
    import sentencepiece

    (tmp_path / "tokenizer.model").write_bytes(pieces)
    for file, content in load_tokenizer(tmp_path).files().items():
        (tmp_path / file).write_bytes(content)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert load_tokenizer(tmp_path).encode("a  ½ \n b<s>") == theirs.encode("a  ½ \n b<s>")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_gguf_refuses_added_tokens_that_it_cannot_keep(tmp_path, flag):
    size = len(llama_json()["model"]["vocab"])
    tok = load_tokenizer(changed(tmp_path, added_tokens_decoder={str(size): added("<tool>", **{flag: True})}))
    with pytest.raises(ConfigError, match=f"added token '<tool>' has {flag}, which llama.cpp"):
        describe(tok, size + 1)


def test_gguf_refuses_split_special_tokens(tmp_path):
    with pytest.raises(ConfigError, match="split_special_tokens is true"):
        describe(load_tokenizer(changed(tmp_path, split_special_tokens=True)), 512)


def through_gguf(tok):
    """The tokenizer that the keys of a GGUF file say."""
    from giraffe_jax.tokenizer import gguf

    return gguf.tokenizer(gguf.File(Path("a.gguf"), describe(tok, tok.vocab_size), None))


@pytest.mark.parametrize("config", [{}, dict(tokenizer_class="LlamaTokenizer", add_prefix_space=False)], ids=str)
def test_a_space_in_front_is_that_of_llama_cpp(tmp_path, config):
    """In front of every text and after every added token, whether a space is there or not; or nowhere."""
    tok = load_tokenizer(changed(tmp_path, **config))
    back = through_gguf(tok)
    for text in strings():
        assert back.encode(text) == tok.encode(text), text
    space, plain = tok.encode("<s> the"), tok.encode("<s>the")
    assert (len(space) == len(plain) + 1) is (config == {})


@pytest.mark.parametrize(("legacy", "scheme"), [(False, "first"), (True, "always")])
def test_a_space_in_front_that_llama_cpp_does_not_put_is_refused(tmp_path, legacy, scheme):
    tok = load_tokenizer(changed(tmp_path, tokenizer_class="LlamaTokenizer", legacy=legacy))
    with pytest.raises(ConfigError, match=f"prepend_scheme '{scheme}'.*'PreTrainedTokenizerFast' does the same"):
        describe(tok, tok.vocab_size)
    through_gguf(load_tokenizer(changed(tmp_path, tokenizer_class="PreTrainedTokenizerFast", legacy=legacy)))


def test_a_prompt_that_begins_by_itself_has_two_begin_tokens_and_one_warning(tmp_path):
    tok = load_tokenizer(changed(tmp_path, add_bos_token=True))
    texts = ["<s>the giraffe", "<s>the rain", "the <s>rain"]
    with pytest.warns(UserWarning, match=r"'<s>'.*has two, as in transformers") as said:
        ids = [begun(tok, tok.encode(text)) for text in texts]
    assert len({str(w.message) for w in said}) == 1 and [i[:2] == (1, 1) for i in ids] == [True, True, False]
    with pytest.warns(UserWarning, match="has two"):
        tok = load_tokenizer(tmp_path)
        filling.example(tok, filling.Made("<s>the", " rain", ("rain",), 0.0))
    with pytest.warns(UserWarning, match="has two"):
        assert LM(ModelConfig(400, 8, 8, 1, 1, 1, 8, 32), None, load_tokenizer(tmp_path)).encode("<s>")[:2] == [1, 1]


@pytest.mark.oracle
def test_transformers_gives_two_begin_tokens_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    for file, content in load_tokenizer(changed(tmp_path, add_bos_token=True)).files().items():
        (tmp_path / file).write_bytes(content)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).encode("<s>the")[:2] == [1, 1]
