"""giraffe-jax: change how a Llama knows where its tokens are, train it, measure it, hand it back.

Importing the package imports nothing else; take what you need from its modules.
"""

__version__ = "0.1.0"
