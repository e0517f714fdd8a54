"""An own method in a file beside a config, from the command line: drawn, trained, measured, continued; and mistakes."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.loading import load
from giraffe_jax.positions import bind, check, frequencies, largest_factor
from giraffe_jax.positions.code import same, sources
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.workdir import claim

METHOD = '''
"""Wavelet: planes slower by a power of a factor that grows with their wavelength."""

from giraffe_jax.positions import Encoding, Factor


def {name}(e: Encoding, *, factor: Factor = 4.0) -> Encoding:
    """th_i / factor^(i / (R - 1))."""
    return e.replace(inv_freq=e.inv_freq / factor ** (e.planes / e.planes[-1]))
'''

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    data = dict(sources=[dict(kind="synthetic")], seq_len=256, batch_size=4)
    return ConfigDict(dict(source="giraffe-mini", steps=2, optim=dict(lr=1e-3, warmup_steps=0), data=data,
                           model=dict(positions=[dict(name="{module}.{name}", factor=2.0)])))
"""

EVALUATION = """
from ml_collections import ConfigDict

def get_config(source):
    return ConfigDict(dict(source=source, tasks=[dict(name="lines", lengths=[64], n=4, style="compact")]))
"""


def write(folder: Path, module: str, name: str = "wavelet", text: str = METHOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(text.replace("{name}", name))
    return folder


def giraffe(*words, cwd):
    command = [sys.executable, "-m", "giraffe_jax.cli", *map(str, words)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_four_commands_know_a_method_beside_its_config(tmp_path):
    beside = write(tmp_path / "idea", "my_wavelet")
    (beside / "config.py").write_text(CONFIG.format(module="my_wavelet", name="wavelet"))
    (beside / "measure.py").write_text(EVALUATION)
    drawn = giraffe("methods", "my_wavelet.wavelet", "--factor=2", "--head-dim=32", cwd=beside)
    assert drawn.returncode == 0 and re.search(r"plane  15 .* 0\.5000", drawn.stdout), drawn.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = tmp_path / "run"
    trained = giraffe("train", f"--config={beside}/config.py", f"--workdir={run}", cwd=elsewhere)
    assert trained.returncode == 0, trained.stderr
    assert (run / "methods" / "my_wavelet.py").read_text() == (beside / "my_wavelet.py").read_text()
    measured = giraffe("evaluate", f"--config={beside}/measure.py:{run}", f"--workdir={tmp_path}/m", cwd=elsewhere)
    assert measured.returncode == 0, measured.stderr
    prompt = ("generate", f"--source={run}", "--prompt=ask", "-n", "4")
    lost = giraffe(*prompt, cwd=elsewhere)
    assert lost.returncode == 2 and f"{run}/methods: read it" in lost.stderr and "--methods=FOLDER" in lost.stderr
    continued = [giraffe(*prompt, cwd=beside), giraffe(*prompt, f"--methods={run}/methods", cwd=elsewhere)]
    assert [done.returncode for done in continued] == [0, 0], continued
    assert continued[0].stdout == continued[1].stdout
    (beside / "my_wavelet.py").write_text(METHOD.replace("{name}", "wavelet").replace("e.planes[-1]", "e.planes[-2]"))
    again = giraffe("train", f"--config={beside}/config.py", f"--workdir={run}", "--config.steps=4", cwd=elsewhere)
    assert again.returncode == 2 and "holds a run with another version of my_wavelet.py" in again.stderr
    warned = giraffe(*prompt, cwd=beside)
    assert warned.returncode == 0 and "my_wavelet.py is not what the run was trained with" in warned.stderr


HEAD = "from giraffe_jax.positions import Encoding\n"
MODEL = dict(head_dim=32, theta=1e4, original_len=256)
MISTAKES = {
    "undeclared length": (
        "def f(e: Encoding) -> Encoding:\n    return e.replace(inv_freq=e.inv_freq * 256 / e.length)\n",
        r"TypeError: .*It reads e\.length, known only inside the step: the file must declare NEEDS = \('length',\)",
    ),
    "undeclared positions": (
        "NEEDS = ('length',)\ndef f(e: Encoding):\n    return e.replace(query_scale=e.positions + e.length)\n",
        r"declare NEEDS = \('length', 'positions'\)",
    ),
    "forgotten return": (
        "def f(e: Encoding) -> Encoding:\n    e.replace(inv_freq=e.inv_freq / 2)\n",
        r"m\d+\.py:2: it returned None; a method ends in `return e\.replace\(\.\.\.\)`",
    ),
    "wrong shape": (
        "def f(e: Encoding) -> Encoding:\n    return e.replace(inv_freq=e.inv_freq[:-1])\n",
        r"m\d+\.py:2: it returned inv_freq of shape \(15,\); expected \(16,\), a number for each rotary plane",
    ),
    "positional parameter": (
        "def f(e: Encoding, factor: float) -> Encoding:\n    return e\n",
        r"m\d+\.py:2: parameter factor: float of m\d+\.f is positional; .* put a \* after the first",
    ),
    "no annotation": ("def f(e, *, factor):\n    return e\n", r"its first parameter must be annotated Encoding"),
    "unknown need": ("NEEDS = ('lenght',)\ndef f(e: Encoding):\n    return e\n", r"NEEDS has 'lenght'.*mean 'length'"),
    "no function": ("def g(e: Encoding):\n    return e\n", r"has no function 'f'; it has g\."),
    "division by zero": ("def f(e: Encoding):\n    return 1 / 0\n", r"m\d+\.py:3: ZeroDivisionError: division by zero"),
    "syntax": ("def f(e: Encoding:\n    return e\n", r"its module fails: .*m\d+\.py:2: SyntaxError"),
    "import": ("import nowhere_at_all\n", r"m\d+\.py:2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "not finite": (
        "def f(e: Encoding):\n    return e.replace(inv_freq=e.inv_freq * float('nan'))\n",
        r"it returned inv_freq with numbers that are not finite",
    ),
    "gain not finite": (
        "def f(e: Encoding):\n    return e.replace(gain=float('inf'))\n",
        r"it returned gain with numbers that are not finite",
    ),
    "numpy on traced numbers": (
        "import numpy as np\nNEEDS = ('length',)\ndef f(e: Encoding):\n"
        "    return e.replace(inv_freq=e.inv_freq * np.log(np.asarray(e.length)))\n",
        r"compute with e\.xp instead of numpy",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_its_cure(tmp_path, monkeypatch, mistake):
    text, message = MISTAKES[mistake]
    module = f"m{list(MISTAKES).index(mistake)}"
    monkeypatch.syspath_prepend(write(tmp_path, module, text=HEAD + text))
    from giraffe_jax.model import ModelConfig

    shape: dict = dict(vocab_size=8, d_model=8, d_mlp=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    with pytest.raises(ConfigError, match=r"model\.positions\[0\]") as error:
        ModelConfig(**shape, positions=(dict(name=f"{module}.f"),))
    assert re.search(message, str(error.value)), str(error.value)


FREE = {  # parameters without a range, each with a value that its formula has no answer for
    "frequencies": ("factor: float = 4.0", "inv_freq=e.inv_freq / e.xp.asarray(factor)", dict(factor=0.0), "factor"),
    "gain": ("heat: float", "gain=e.xp.log(heat)", dict(heat=0.0), "heat"),
    "which of two": ("a: float = 1.0, b: float = 1.0", "gain=e.xp.asarray(a) / b + 0 * a", dict(a=3.0, b=0.0), "b"),
    "an exception": ("factor: float = 4.0", "inv_freq=e.inv_freq / (1 / factor)", dict(factor=0.0), "factor"),
    "infinity": ("factor: float = 4.0", "inv_freq=e.inv_freq * factor", dict(factor=float("inf")), "factor"),
    "no annotation": ("factor=4.0", "inv_freq=e.inv_freq * factor", dict(factor=float("nan")), "factor"),
    "in the step": (
        "base: float = 2.0",
        "query_scale=e.xp.log(e.positions + 1) / e.xp.log(base)",
        dict(base=1.0),
        "base",
    ),
    "bands": (
        "group: float = 2.0",
        "bands=(Band(q_pos=Line(scale=e.xp.asarray(1.0) / group)),)",
        dict(group=0.0),
        "group",
    ),
}


@pytest.mark.parametrize("case", FREE)
def test_a_parameter_without_a_range_is_refused_by_its_name(tmp_path, monkeypatch, case):
    parameters, change, given, name = FREE[case]
    module = f"free{list(FREE).index(case)}"
    text = HEAD + "from giraffe_jax.positions.bands import Band, Line\n"
    text += "NEEDS = ('positions',)\n" if "e.positions" in change else ""
    text += f"def f(e: Encoding, *, {parameters}) -> Encoding:\n    return e.replace({change})\n"
    monkeypatch.syspath_prepend(write(tmp_path, module, text=text))
    with pytest.raises(ConfigError) as error:
        bind([dict(name=f"{module}.f", **given)], **MODEL, where="config.variants[2].positions")
    said = str(error.value)
    assert said.startswith(f"config.variants[2].positions[0] ({module}.f).{name}: "), said
    assert f"with {name} = {given[name]!r}. Declare a range to reject such values: {name}: Positive" in said
    assert "\n" not in said and len(said) < 500 + len(str(tmp_path))


def test_a_variant_s_parameter_is_named_as_its_config_does(tmp_path, monkeypatch, capsys):
    text = HEAD + "def f(e: Encoding, *, factor: float = 4.0):\n    return e.replace(gain=e.gain / factor)\n"
    tasks = "tasks=[dict(name='lines', lengths=[64], n=4, style='compact')]"
    bad = "positions=[dict(name='of_a_variant.f', factor=0)]"
    write(tmp_path, "of_a_variant", text=text)
    variants = f"variants=[dict(name='plain'), dict(name='bad', {bad})]"
    for name, values in (("run", f"name='x', {variants}"), ("evaluate", bad)):
        (tmp_path / f"{name}.py").write_text(
            f"def get_config():\n    return dict(source='giraffe-mini', {tasks}, {values})"
        )
    monkeypatch.setattr(sys, "path", [*sys.path])
    for words, key in (
        (["run", f"{tmp_path}/run.py"], "config.variants[1].positions[0]"),
        (["evaluate", f"--config={tmp_path}/evaluate.py"], "config.positions[0]"),
    ):
        assert main([*words, f"--workdir={tmp_path}/{words[0]}"]) == 2
        assert f"giraffe: {key} (of_a_variant.f).factor: " in capsys.readouterr().err
    words = ["--source=giraffe-mini", "--prompt=ask", "--positions=[dict(name='of_a_variant.f', factor=0)]"]
    assert main(["generate", *words, f"--methods={tmp_path}"]) == 2
    assert "giraffe: --positions[0] (of_a_variant.f).factor: " in capsys.readouterr().err


def test_a_method_that_fails_whatever_its_parameters_blames_none(tmp_path, monkeypatch):
    text = HEAD + "def f(e: Encoding, *, a: float = 1.0):\n    return e.replace(gain=a * float('nan'))\n"
    monkeypatch.syspath_prepend(write(tmp_path, "fails_always", text=text))
    with pytest.raises(ConfigError, match=r"\(fails_always\.f\): .*returned gain .* not finite: nan in 1 of 1\.$"):
        bind([dict(name="fails_always.f", a=3.0)], **MODEL)


def test_infinity_is_allowed_where_it_is_no_limit(tmp_path, monkeypatch):
    text = HEAD + "from giraffe_jax.positions.bands import Line, far, near, with_bands\n"
    text += "def f(e: Encoding):\n    return with_bands(e, near(8), far(8, Line(0.5, 4)), key_pos=Line(0.5))"
    text += ".replace(window=float('inf'), chunk=(float('inf'), 24.0))\n"
    monkeypatch.syspath_prepend(write(tmp_path, "no_limit", text=text))
    assert bind([dict(name="no_limit.f")], **MODEL).bands[1].high == np.inf


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("halfway", "halfway.halfway"),
        ("halfway.py", "halfway.halfway"),
        ("./halfway.py", "halfway.halfway"),
        ("halfwya.halfway", "halfway.halfway"),
        ("halfway.halfwya", "halfway"),
        ("lineer", "linear"),
    ],
)
def test_the_method_that_was_meant_is_named(tmp_path, monkeypatch, capsys, named, meant):
    folder = write(tmp_path, "halfway", "halfway")
    (folder / "config.py").write_text(CONFIG.replace("{module}.{name}", named))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["methods", named]) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err
    assert main(["train", f"--config={folder}/config.py", f"--workdir={tmp_path}/w"]) == 2
    said = capsys.readouterr().err
    assert f"Did you mean '{meant}'?" in said and "model.positions[0]" in said
    sys.modules.pop("halfway", None)


def test_a_length_that_is_not_declared_is_not_there_even_where_it_is_known(tmp_path, monkeypatch):
    text = HEAD + "def f(e: Encoding):\n    return e.replace(inv_freq=e.inv_freq * 256 / e.length)\n"
    monkeypatch.syspath_prepend(write(tmp_path, "reads_length", text=text))
    with pytest.raises(ConfigError, match=r"the file must declare NEEDS = \('length',\)"):
        bind([dict(name="reads_length.f")], **MODEL, length=512)
    write(tmp_path, "halves", text=HEAD + "def f(e: Encoding):\n    return e.replace(inv_freq=e.inv_freq / 2)\n")
    after = [dict(name="halves.f"), dict(name="dynamic", factor=1.0)]  # which reads the length, after one that may not
    np.testing.assert_allclose(
        bind(after, **MODEL, length=512).inv_freq, frequencies(after[1:], **MODEL, length=512)[0] / 2, rtol=1e-6
    )


def test_a_file_elsewhere_is_answered_with_the_flag_that_finds_it(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "idea", "elsewhere", "wave")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["methods", f"{folder}/elsewhere.py"]) == 2
    assert f"--methods={folder} is where 'elsewhere.wave' is found." in capsys.readouterr().err
    assert main(["methods", "elsewhere.wave", f"--methods={folder}"]) == 0


def test_a_file_is_read_to_be_suggested_and_not_run(tmp_path, monkeypatch):
    folder = write(tmp_path, "not_run", "not_run", "raise SystemExit('it ran')\n" + METHOD)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ConfigError, match=r"positions\[0\]: unknown method .*Did you mean 'not_run\.not_run'\?"):
        frequencies([dict(name="not_run")], **MODEL)


def test_a_method_inside_a_choice_is_named_with_its_place(tmp_path, monkeypatch):
    text = HEAD + "def f(e: Encoding):\n    return e.replace(gain=float('nan'))\n"
    monkeypatch.syspath_prepend(write(tmp_path, "in_a_choice", text=text))
    scaling = [dict(name="linear", factor=2.0), dict(name="mixed", choices=[[], [dict(name="in_a_choice.f")]])]
    with pytest.raises(ConfigError) as error:
        frequencies(scaling, **MODEL)
    assert str(error.value).startswith("positions[1] (mixed).choices[1][0] (in_a_choice.f): ")


DRAWN = {
    "own length": ("NEEDS = ('length',)\n", "inv_freq=e.inv_freq * e.original_len / e.length", "0.2500"),
    "layers": ("", "inv_freq=e.inv_freq / e.xp.arange(1, e.num_layers + 1)[:, None]", "layers 4 of 4:"),
    "a window": ("", "window=64.0", "It changes more than frequencies and gain: window."),
}


@pytest.mark.parametrize("case", DRAWN)
def test_an_own_method_is_drawn_with_all_that_it_changes(tmp_path, monkeypatch, capsys, case):
    head, change, shown = DRAWN[case]
    module = f"drawn{list(DRAWN).index(case)}"
    write(tmp_path, module, text=f"{HEAD}{head}def f(e: Encoding) -> Encoding:\n    return e.replace({change})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["methods", f"{module}.f"]) == 0
    assert shown in capsys.readouterr().out


def test_a_parameter_without_a_value_is_asked_for(tmp_path, monkeypatch, capsys):
    write(tmp_path, "asks", text=HEAD + "def f(e: Encoding, *, factor: float) -> Encoding:\n    return e\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["methods", "asks.f"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "giraffe: asks.f: missing ['factor']: write --factor=VALUE, or EXAMPLE = dict(factor=...) in its file.\n"
    )
    assert main(["methods", "asks.f", "--factor=2"]) == 0


@pytest.mark.parametrize(
    "name", ["os.getcwd", "shutil.rmtree", "subprocess.run", "builtins.exec", "os.path", "m..f", "x.y.z"]
)
def test_what_is_no_method_is_never_called(name):
    with pytest.raises(ConfigError, match=r"model\.positions\[0\]: .*(is not a (method|dotted path)|cannot import)"):
        check([dict(name=name, path="/tmp/nothing")])


def test_the_sources_of_a_list_are_those_of_its_own_methods(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, "own_of_a_list"))
    scaling = [dict(name="linear", factor=2.0), dict(name="own_of_a_list.wavelet")]
    np.testing.assert_allclose(frequencies(scaling, **MODEL)[0][-1] * 4, frequencies(scaling[:1], **MODEL)[0][-1], 1e-6)
    assert list(sources(scaling)) == ["own_of_a_list.py"]
    nested = [dict(name="mixed", choices=[[scaling[0]], [scaling[1]]])]
    assert list(sources(nested)) == ["own_of_a_list.py"] and sources(scaling[:1]) == {}
    assert load("giraffe-mini", dict(positions=scaling)).config.positions[1]["name"] == "own_of_a_list.wavelet"
    assert largest_factor(scaling) == 4.0  # its default, by which an export says how far it reaches


def test_a_method_is_the_same_whatever_its_comments_and_layout():
    assert same("x = 1  # one\n", "x  =  1\n") and not same("x = 1\n", "x = 2\n")
    assert same("no python", "no python") and not same("no python", "none either")


def test_the_source_of_a_package_is_kept_as_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "own_package", "__init__")
    write(tmp_path / "own_package", "inside")
    found = sources([dict(name=f"own_package{module}.wavelet") for module in ("", ".inside")])
    assert found == {}  # nothing is imported to find it
    check([dict(name="own_package.wavelet"), dict(name="own_package.inside.wavelet")])
    found = sources([dict(name="own_package.wavelet"), dict(name="own_package.inside.wavelet")])
    assert list(found) == ["own_package/__init__.py", "own_package/inside.py"]


def test_folders_of_methods_are_looked_in_behind_what_is_installed(tmp_path, monkeypatch):
    """In this process: `python -m` would put the current folder in front by itself."""
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    monkeypatch.setattr(sys, "path", [*before])
    assert main(["methods", "--methods=m"]) == 0
    assert sys.path == [*before, str(tmp_path / "m"), str(tmp_path)]


def test_the_sources_of_a_method_are_also_what_it_imports_of_its_project_at_any_depth(tmp_path, monkeypatch):
    files = {
        "pyproject.toml": "",
        "idea/own_deep.py": f"{HEAD}import numpy\nimport jax.numpy as jnp\nfrom own_parts import near, here\n"
        "from shared_here import far\ndef f(e: Encoding):\n    import own_late\n    return near.g(e)\n",
        "idea/own_parts/__init__.py": "here = 1\n",
        "idea/own_parts/near.py": "from . import deep\nfrom .deep.er import g\nimport json.decoder\n",
        "idea/own_parts/deep/__init__.py": "from .. import near\n",
        "idea/own_parts/deep/er.py": "def g(e):\n    return e\n",
        "idea/own_parts/unused.py": "",
        "idea/own_late.py": "import own_deep\n",
        "shared_here.py": "far = 1\n",
        "venv/lib/site-packages/installed_one.py": "",
    }
    files["idea/own_parts/deep/er.py"] += "import installed_one, giraffe_jax.positions.ramps\n"
    for name, text in files.items():
        write((tmp_path / name).parent, Path(name).stem, text=text)
    (tmp_path / "pyproject.py").rename(tmp_path / "pyproject.toml")
    for folder in ("venv/lib/site-packages", ".", "idea"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    check([dict(name="own_deep.f")])
    assert list(sources([dict(name="own_deep.f")])) == [
        "own_deep.py", "own_late.py", "own_parts/__init__.py", "own_parts/deep/__init__.py", "own_parts/deep/er.py",
        "own_parts/near.py", "shared_here.py",
    ]  # fmt: skip
    assert "own_late" not in sys.modules, "nothing is imported to be read"


def test_an_installed_method_brings_its_own_package_alone(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    write(folder / "own_installed", "__init__", text="from . import parts\n")
    write(folder / "own_installed", "parts", text="import own_neighbour\n")
    write(folder / "own_installed", "main", text=f"{HEAD}import own_neighbour\ndef f(e: Encoding):\n    return e\n")
    write(folder, "own_neighbour", text="")
    monkeypatch.syspath_prepend(folder)
    check([dict(name="own_installed.main.f")])
    found = list(sources([dict(name="own_installed.main.f")]))
    assert found == ["own_installed/__init__.py", "own_installed/main.py", "own_installed/parts.py"]


def test_a_run_does_not_go_on_with_another_import_of_its_method(tmp_path, monkeypatch):
    write(tmp_path, "own_kept", text=f"{HEAD}import own_kept_by\ndef f(e: Encoding):\n    return own_kept_by.g(e)\n")
    write(tmp_path, "own_kept_by", text="def g(e):\n    return e\n")
    monkeypatch.syspath_prepend(tmp_path)
    check([dict(name="own_kept.f")])
    resolved, run = dict(model=dict(positions=[dict(name="own_kept.f")]), steps=3), tmp_path / "run"
    claim(run, resolved, ByteTokenizer())
    assert sorted(p.name for p in (run / "methods").iterdir()) == ["own_kept.py", "own_kept_by.py"]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def edit(text):
        write(tmp_path, "own_kept_by", text=text)
        for name in ("own_kept", "own_kept_by"):
            sys.modules.pop(name)
        check([dict(name="own_kept.f")])

    edit("# a comment\ndef g(e):\n    return e\n")
    assert claim(run, resolved, ByteTokenizer()) == {}
    edit("def g(e):\n    return e.replace(gain=2.0)\n")
    kept = re.escape(str(run / "methods" / "own_kept_by.py"))
    with pytest.raises(ConfigError, match=rf"another version of own_kept_by\.py, saved in {kept}\. Restore that"):
        claim(run, resolved, ByteTokenizer())
    (run / "methods" / "own_kept_by.py").unlink()  # as of a run before imports were kept
    claim(run, resolved, ByteTokenizer())
    assert "gain" in (run / "methods" / "own_kept_by.py").read_text(), "known from here on"


def test_the_source_is_that_of_the_code_which_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(write(tmp_path, "own_running", text=f"{HEAD}def f(e: Encoding):\n    return e\n"))
    scaling = [dict(name="own_running.f")]
    check(scaling)
    first = sources(scaling)
    write(tmp_path, "own_running", text=f"{HEAD}def f(e: Encoding):\n    return e.replace(gain=2.0)\n")
    with pytest.warns(UserWarning, match=r"own_running\.py was edited after this process imported it"):
        assert sources(scaling) == first
    importlib.reload(sys.modules["own_running"])
    assert "gain" in sources(scaling)["own_running.py"]


def test_a_function_of_a_notebook_is_known_by_its_text(monkeypatch):
    import linecache
    import types

    module = types.ModuleType("own_cell")
    text = f"{HEAD}def f(e: Encoding):\n    return e\n"
    exec(compile(text, "<own cell>", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "own_cell", module)
    monkeypatch.setitem(linecache.cache, "<own cell>", (len(text), None, text.splitlines(True), "<own cell>"))
    assert sources([dict(name=module.f)]) == {"own_cell.f.py": "def f(e: Encoding):\n    return e\n"}
