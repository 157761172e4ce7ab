"""Text: corpora, tokenizers, blocks and batches."""

from sedd_jax.data.batches import Batches, cut_blocks, encode_documents
from sedd_jax.data.corpus import Corpus, check_same, embedded, load_corpus
from sedd_jax.data.dataset import DataConfig, Dataset, load_dataset, vocab_size_of
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
  "cut_blocks",
  "embedded",
  "encode_documents",
  "from_json",
  "from_name",
  "load_corpus",
  "load_dataset",
  "vocab_size_of",
]
