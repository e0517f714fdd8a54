"""What every test runs under: eight CPU devices, no network, compilations shared between workers."""

import gc
import getpass
import itertools
import os
import tempfile
from pathlib import Path

# Before anything reads them: tests never ask a hub, and draw without a screen.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# Programs that two workers, two runs, or commands that tests start compile alike are compiled once, small ones too.
CACHE = Path(tempfile.gettempdir()) / f"giraffe-jax-tests-{getpass.getuser()}"
COMPILED = {"jax_compilation_cache_dir": str(CACHE), "jax_persistent_cache_min_compile_time_secs": 0}
for name, value in COMPILED.items():
    os.environ.setdefault(name.upper(), str(value))  # for commands; .ci/run names a folder for all its stages
    jax.config.update(name, type(value)(os.environ[name.upper()]))

# No test asserts a time: a first example may compile, on a machine that does other things.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Tokens of test sources stay out of the home directory; commands that tests start inherit it.
os.environ["GIRAFFE_CACHE"] = f"{CACHE}-tokens"


# Tracing makes millions of objects and few cycles: with Python's own thresholds the collector took a sixth of the time.
gc.set_threshold(100_000, 50, 100)

MAPS = Path("/proc/self/maps")  # Linux; a compiled program holds several mappings, and the kernel allows 65,530
ENDED = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings():
    """Drops compiled programs before the kernel refuses a worker another mapping, which LLVM answers with SIGSEGV."""
    yield
    if next(ENDED) % 10 == 0 and MAPS.is_file() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def traces(monkeypatch):
    """`traces(module, name)` returns a list that grows whenever one of the module's compiled functions, which call
    `module.name`, is traced anew; what was traced before is forgotten."""

    def watch(module, name):
        seen, function = [], getattr(module, name)
        for compiled in vars(module).values():
            if isinstance(compiled, type(jax.jit(len))):
                compiled.clear_cache()

        def watched(*args, **keys):
            seen.append(name)
            return function(*args, **keys)

        monkeypatch.setattr(module, name, watched)
        return seen

    return watch


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The path of a byte tokenizer's file."""
    from giraffe_jax.tokenizer import ByteTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in ByteTokenizer().files().items():
        (folder / name).write_bytes(content)
    return str(folder / "tokenizer.json")
