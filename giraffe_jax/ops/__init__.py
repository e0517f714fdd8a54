"""Operations of a model that have a fast form on some device."""
