"""Paths that a user names."""

from pathlib import Path

import pytest

from sedd_jax.files.paths import local_path


def test_home_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert local_path("~/runs/one", "--workdir") == tmp_path / "runs" / "one"
  assert local_path("~", "--workdir") == tmp_path
  assert local_path(Path("~") / "x", "--workdir") == tmp_path / "x"


@pytest.mark.parametrize("path", ["a~b", "dir/~", "C:", "a:b", "./gs:", "x [1],;é.txt"])
def test_other_paths_are_as_written(path):
  assert local_path(path, "--out") == Path(path)


@pytest.mark.parametrize(
  "path", ["gs://bucket/run", "s3://b", "GS://b", "gs:/bucket", "https://x/y", "file:///tmp/x"]
)
def test_addresses_are_refused(path):
  with pytest.raises(ValueError, match=r"--out=.*is an address; only local paths"):
    local_path(path, "--out")


@pytest.mark.parametrize(
  ("path", "why"), [("", "empty"), (" ", "empty"), ("a\0b", "NUL"), ("~nobody-of-this-name/x", "~")]
)
def test_what_is_no_path_is_refused(path, why):
  with pytest.raises(ValueError, match=why):
    local_path(path, "data.path")
