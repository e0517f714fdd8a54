"""giraffe-jax: extend the context of Llama models: change their positions, train, evaluate, export.

    from giraffe_jax import load


    lm = load("giraffe-mini")  # or a Hugging Face directory, a .gguf file, the workdir of a run
    print(lm.generate("It is a truth universally", 32), lm.score("It is a truth").perplexity)

Importing the package imports nothing else until `load` is asked for; the rest is in its modules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from giraffe_jax.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from giraffe_jax.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
