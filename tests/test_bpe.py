"""`tokenizer=bpe:N`: trained on the text to train on, and on no other."""

import pytest

from sedd_jax.data import DataConfig, from_json, from_name, load_dataset
from sedd_jax.data.bpe import LEAST, train_bpe
from sedd_jax.data.prepare import prepare
from sedd_jax.data.tokenizers import same_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 40
SIZE = 290


def config(tmp_path, train=TEXT, heldout="", **fields):
  (tmp_path / "train.txt").write_text(train)
  if heldout:
    (tmp_path / "heldout.txt").write_text(heldout)
    fields["heldout_files"] = str(tmp_path / "heldout.txt")
  return DataConfig(files=str(tmp_path / "train.txt"), tokenizer=f"bpe:{SIZE}", length=8, **fields)


def test_it_has_so_many_tokens_and_words_are_tokens(tmp_path):
  dataset = load_dataset(config(tmp_path))
  tokenizer = dataset.tokenizer
  assert tokenizer.vocab_size == SIZE
  assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"
  assert tokenizer.decode(tokenizer.encode("naïve 東 dog")) == "naïve 東 dog"
  assert dataset.chars_per_token > 2.0


def test_the_same_text_gives_the_same_tokenizer():
  one, other = (from_name(f"bpe:{SIZE}", [TEXT, "more text of it"]) for _ in range(2))
  assert one.to_json() == other.to_json()
  assert same_tokenizer(one, from_json(one.to_json()))


def test_it_never_sees_heldout_text(tmp_path):
  """Held-out text of other words changes nothing, whether it is cut off or a file of its own."""
  expected = from_name(f"bpe:{SIZE}", [TEXT])
  other = "zyxwv utsrq " * 200
  assert same_tokenizer(load_dataset(config(tmp_path, heldout=other)).tokenizer, expected)
  share = len(TEXT) / len(TEXT + other)
  cut = config(tmp_path, train=TEXT + other, split=(share, 1.0))
  assert same_tokenizer(load_dataset(cut).tokenizer, expected)
  prepare(config(tmp_path, heldout=other), tmp_path / "prepared", workers=1)
  made = load_dataset(
    DataConfig(files=str(tmp_path / "prepared"), tokenizer=f"bpe:{SIZE}", length=8)
  )
  assert same_tokenizer(made.tokenizer, expected)


@pytest.mark.parametrize("name", ["bpe:", "bpe:x", "bpe:-5", "bpe:1.5", f"bpe:{LEAST - 1}"])
def test_sizes_that_are_none_are_refused(name):
  with pytest.raises(ValueError, match=f"data.tokenizer='{name}' must be bpe:N"):
    from_name(name, [TEXT])


def test_text_that_gives_fewer_tokens_is_named():
  with pytest.raises(ValueError, match=r"bpe:5000: the training text gives only \d+ tokens"):
    train_bpe(5000, [TEXT])


def test_prepared_text_of_another_size_is_refused(tmp_path):
  prepare(config(tmp_path), tmp_path / "prepared", workers=1)
  with pytest.raises(ValueError, match="has another tokenizer"):
    load_dataset(DataConfig(files=str(tmp_path / "prepared"), tokenizer="bpe:280", length=8))
