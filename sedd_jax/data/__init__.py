"""Text: corpora, tokenizers, prepared shards, rows and batches."""

from sedd_jax.data.batches import Batches
from sedd_jax.data.config import DataConfig
from sedd_jax.data.corpus import Corpus, check_same, embedded, load_corpus
from sedd_jax.data.dataset import Dataset, load_dataset, vocab_size_of
from sedd_jax.data.tokenizers import BPE, Bytes, Chars, Tokenizer, from_json, from_name
from sedd_jax.data.wordpiece import WordPiece

__all__ = [
  "BPE",
  "Batches",
  "Bytes",
  "Chars",
  "Corpus",
  "DataConfig",
  "Dataset",
  "Tokenizer",
  "WordPiece",
  "check_same",
  "embedded",
  "from_json",
  "from_name",
  "load_corpus",
  "load_dataset",
  "vocab_size_of",
]
