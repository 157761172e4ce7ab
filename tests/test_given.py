"""Rows of tokens that exist already, as a prepared folder."""

import numpy as np
import pytest

from sedd_jax.data import Bytes, DataConfig, load_dataset
from sedd_jax.data.given import prepare_rows
from sedd_jax.data.prepared import check


def given_rows(folder, rows, tokenizer, held=2):
  return prepare_rows(
    rows[held:], rows[:held], tokenizer, folder, name="rows", tokenizer_name="bytes:eos"
  )


def test_given_rows_are_the_rows_of_a_run(tmp_path):
  """Also those that no text would give, such as with an end of text inside."""
  rows = np.random.default_rng(0).integers(0, 257, (20, 16))
  manifest = given_rows(tmp_path / "rows", rows, Bytes(eos=True))
  assert check(str(tmp_path / "rows")) == []
  config = DataConfig(files=str(tmp_path / "rows"), tokenizer="bytes:eos", length=16)
  data = load_dataset(config)
  np.testing.assert_array_equal(data.train_rows[0][:].tokens, rows[2:])
  np.testing.assert_array_equal(data.heldout_rows[:].tokens, rows[:2])
  characters = [len(Bytes(eos=True).decode(row)) for row in rows]
  assert data.chars_per_token == sum(characters[:2]) / 32
  assert manifest["corpus"]["characters"] == sum(characters)
  # Other tokens are another corpus, also where the text is the same.
  rows[3, 0] += 1 if rows[3, 0] < 256 else -1
  other = given_rows(tmp_path / "other", rows, Bytes(eos=True))
  assert other["corpus"]["sha256"] != manifest["corpus"]["sha256"]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (np.full((3, 4), 257), "token 257 is not one of the 257"),
    (np.full((3, 4), -1), "token -1"),
    (np.zeros((3, 4)), "train: .*float64 must be int"),
    (np.zeros(4, int), "train: .*shape"),
    (np.zeros((2, 4), int), "train: .*shape"),
  ],
)
def test_rows_that_are_none_leave_no_folder(tmp_path, rows, message):
  with pytest.raises(ValueError, match=message):
    given_rows(tmp_path / "rows", rows, Bytes(eos=True))
  assert not (tmp_path / "rows").exists()


def test_rows_go_into_a_new_folder_only(tmp_path):
  with pytest.raises(FileExistsError):
    given_rows(tmp_path, np.zeros((4, 4), int), Bytes(eos=True))
