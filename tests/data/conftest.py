import pytest


@pytest.fixture(autouse=True)
def giraffe_cache(tmp_path_factory, monkeypatch):
    """An empty token cache for each test, and never the one in the real home."""
    folder = tmp_path_factory.mktemp("giraffe-cache")
    monkeypatch.setenv("GIRAFFE_CACHE", str(folder))
    return folder
