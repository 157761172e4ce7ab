"""Small tokenizers of the `tokenizers` library, of every type, trained on a text of words."""

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

WORDS = "the quick brown fox jumps over a lazy dog, naïve café 東京 ½ 🙂 it's 1234.50 (no!) \t tab"
GPT4 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text_of(count, seed=0):
  """Words with single and multiple spaces, lines and paragraphs between them."""
  rng = np.random.default_rng(seed)
  words = rng.choice(WORDS.split(" "), count)
  gaps = rng.choice([" ", " ", " ", "  ", "\n", ".\n", "\n\n", "\r\n", "!\n\n  "], count)
  return "".join(np.char.add(words, gaps).tolist())


TEXT = text_of(3000)


def byte_level(pre=None, normalizer=None):
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  if normalizer:
    made.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  made.train_from_iterator([TEXT], trainer)
  return made


def llama():
  """BPE with byte fallback, without a pre-tokenizer."""
  made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
    limit_alphabet=40, show_progress=False,
  )  # fmt: skip
  made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  made.train_from_iterator([TEXT], trainer)
  made.pre_tokenizer = None
  return made


def unigram(scheme="always"):
  made = tokenizers.Tokenizer(models.Unigram())
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  made.decoder = decoders.Metaspace(prepend_scheme=scheme)
  made.normalizer = normalizers.NFKC()
  trainer = trainers.UnigramTrainer(
    vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
  )
  made.train_from_iterator([TEXT], trainer)
  return made


def word_piece():
  made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.normalizer = normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece(cleanup=True)
  trainer = trainers.WordPieceTrainer(
    vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False
  )
  made.train_from_iterator([TEXT], trainer)
  return made


def word_level():
  made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"], show_progress=False)
  made.train_from_iterator([TEXT], trainer)
  return made


def gpt1():
  """BPE whose words end with a suffix."""
  made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.BPEDecoder()
  trainer = trainers.BpeTrainer(
    vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
  )
  made.train_from_iterator([TEXT], trainer)
  return made


GPT4_PRE = pre_tokenizers.Sequence(
  [
    pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]
)
KINDS = {
  "byte level": byte_level,
  "byte level, prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
  "byte level, lower case": lambda: byte_level(normalizer=normalizers.Lowercase()),
  "byte level, stripped": lambda: byte_level(normalizer=normalizers.Strip()),
  "GPT-4": lambda: byte_level(GPT4_PRE, normalizers.NFC()),
  "Llama": llama,
  "Unigram": unigram,
  "Unigram, first": lambda: unigram("first"),
  "WordPiece": word_piece,
  "WordLevel": word_level,
  "GPT-1": gpt1,
}
