"""The catalogue: one file per method of the literature, holding one function of the same name."""
