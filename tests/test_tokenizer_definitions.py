"""Tokenizers that runs and folders hold already, and definitions that need care."""

import json

import pytest
import tokenizers
from support.small_tokenizers import byte_level
from tokenizers import normalizers, processors

from sedd_jax.data import BPE
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.training import rundir

# Identity of what was stored.


def test_a_run_that_older_code_began_goes_on(tmp_path):
  library = byte_level()
  library.post_processor = processors.ByteLevel(trim_offsets=False)  # As GPT-2's file has it.
  # Older code stored what the library writes, post-processor and all.
  stored = {"kind": "bpe", "definition": tokenizers.Tokenizer.from_str(library.to_str()).to_str()}
  now = BPE(library.to_str()).to_json()
  assert now != stored
  before = {"config": {}, "corpus": {}, "tokenizer": stored}
  rundir.write_run(tmp_path, before)
  rundir.check_shared(tmp_path, before | {"tokenizer": now})
  rundir.check_meta(tmp_path, 1, before, before | {"tokenizer": now})


def test_a_run_with_another_tokenizer_does_not_go_on(tmp_path, monkeypatch):
  monkeypatch.setattr(rundir, "_SHARED_SECONDS", 0.0)
  one, other = (
    {"config": {}, "corpus": {}, "tokenizer": LibraryTokenizer(library.to_str()).to_json()}
    for library in (byte_level(), byte_level(normalizer=normalizers.Lowercase()))
  )
  rundir.write_run(tmp_path, one)
  with pytest.raises(ValueError, match=r"tokenizer\.json in"):
    rundir.check_shared(tmp_path, other)
  with pytest.raises(ValueError, match=r"tokenizer\.(kind|definition)"):
    rundir.check_meta(tmp_path, 1, json.loads(json.dumps(one)), other)
