"""`python -m giraffe_jax.cli` is `giraffe`."""

import sys

from giraffe_jax.cli import main

sys.exit(main())
