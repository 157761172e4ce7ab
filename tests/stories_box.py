"""The model in the box: how its text was made, and what its samples truly cost.

stories260K (`stories.py`) wrote the text, so that its law is known: no bound of a model can be
below the source's entropy, and the cost of a sample under the source is the true one.

  python tests/stories_box.py rows --out=stories    # STORIES/rows and STORIES/tokenizer.json
  sedd train --config=configs/stories.py --workdir=runs/stories --config.data.files=stories/rows \\
    --config.data.tokenizer=stories/tokenizer.json --config.data.tokenizer_eos='<s>'
  sedd export --checkpoint=runs/stories --out=sedd_jax/assets/stories --weights=float16
  python tests/stories_box.py bound --checkpoint=runs/stories
  python tests/stories_box.py frontier --checkpoint=runs/stories
"""

import argparse
import io
import json
import lzma
from pathlib import Path

import jax
import numpy as np
from stories import BOS, load_stories

import sedd_jax
from sedd_jax.data.given import prepare_rows
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.evaluation.judge import Judge
from sedd_jax.generation.settings import SamplerSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HELD_OUT = 2048
_BYTES = range(3, 259)
_SPECIAL = ("<unk>", "<s>", "</s>")


def source_rows():
  """Rows int[N, 128] that the source drew behind its BOS, and their log likelihoods float[N]."""
  folder = DATA / "stories-rows"
  return tuple(
    np.load(io.BytesIO(lzma.decompress((folder / f"{name}.npy.xz").read_bytes())))
    for name in ("rows", "log_likelihood")
  )


def definition(pieces, scores):
  """The tokenizer.json of SentencePiece's BPE: a pair is joined before others of lower score."""
  names = [
    _SPECIAL[i]
    if i < 3
    else f"<0x{i - 3:02X}>"
    if i in _BYTES
    else pieces[i].decode().replace(" ", "▁")
    for i in range(len(pieces))
  ]
  known, merges = set(names), []
  for i in sorted(range(_BYTES.stop, len(names)), key=lambda i: -scores[i]):
    name = names[i]
    pairs = ([name[:cut], name[cut:]] for cut in range(1, len(name)))
    merges += [pair for pair in pairs if known.issuperset(pair)]
  space = {"pattern": {"String": " "}, "content": "▁"}
  return {
    "version": "1.0",
    "added_tokens": [
      {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
       "normalized": False, "special": True}
      for i, name in enumerate(_SPECIAL)
    ],
    "normalizer": {
      "type": "Sequence",
      "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", **space}],
    },
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
      ],
    },
    "model": {
      "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
      "vocab": {name: i for i, name in enumerate(names)}, "merges": merges,
    },
  }  # fmt: skip


def write_rows(out: Path):
  """A prepared folder of the source's rows, and the tokenizer."""
  _, _, tokenizer = load_stories(DATA / "stories260K")
  out.mkdir(parents=True, exist_ok=True)
  file = out / "tokenizer.json"
  text = json.dumps(definition(tokenizer.pieces, tokenizer.scores), ensure_ascii=False, indent=1)
  file.write_text(text + "\n", encoding="utf-8")
  rows, _ = source_rows()
  manifest = prepare_rows(
    rows[:-HELD_OUT],
    rows[-HELD_OUT:],
    LibraryTokenizer.from_file(file, eos=_SPECIAL[BOS]),
    out / "rows",
    name="stories-rows",
    tokenizer_name=str(file),
  )
  print(f"{out / 'rows'}: {manifest['train']['tokens']:,} tokens to train on")


def print_bound(model, num: int):
  """KL(data, model) <= bound - entropy, on held-out rows."""
  rows, log_likelihood = (x[-HELD_OUT:][:num] for x in source_rows())
  length = rows.shape[1]
  bounds = [
    np.asarray(model.bound(rows[i : i + 64].astype(np.int32), num_times=64, seed=i).strict)
    for i in range(0, num, 64)
  ]
  found = {
    "bound": np.concatenate(bounds) / length,
    "the source's cost of the same rows": -log_likelihood / length,
  }
  found["their difference, which KL(data, model) is at most"] = np.subtract(*found.values())
  for name, each in found.items():
    error = each.std() / np.sqrt(num)
    print(
      f"{name}: {each.mean():.4f} ± {error:.4f} nats, {each.mean() / np.log(2):.3f} bits a token"
    )


def print_frontier(model, num: int, samplers, steps):
  """The true cost of samples, minus the source's log likelihood, by sampler and steps."""
  network, params, _ = load_stories(DATA / "stories260K")
  judge = Judge(network, params, batch_size=64)
  print("| sampler | steps | calls | nats a token under the source | seconds a sample |")
  print("|---|---|---|---|---|")
  empty = np.zeros((num, model.length), np.int32)
  for sampler in samplers:
    for count in steps:
      settings = SamplerSettings(sampler=sampler, steps=count)
      made = model.generate(empty, empty.astype(bool), settings=settings)
      nats = judge.nats(np.pad(made.tokens, ((0, 0), (1, 0)), constant_values=BOS)).per_token
      error = nats.std() / np.sqrt(num)
      print(
        f"| {sampler} | {count} | {made.calls} | {nats.mean():.3f} ± {error:.3f} "
        f"| {made.seconds / num:.3f} |",
        flush=True,
      )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("what", choices=["rows", "bound", "frontier"])
  parser.add_argument("--out", type=Path, default=Path("stories"))
  parser.add_argument("--checkpoint")
  parser.add_argument("--num", type=int, default=512)
  parser.add_argument("--samplers", default="tweedie,ancestral,first_hitting")
  parser.add_argument("--steps", default="4,8,16,32,64,128")
  given = parser.parse_args()
  if given.what == "rows":
    write_rows(given.out)
  elif given.what == "bound":
    print_bound(sedd_jax.load(given.checkpoint), given.num)
  else:
    steps = [int(count) for count in given.steps.split(",")]
    print_frontier(sedd_jax.load(given.checkpoint), given.num, given.samplers.split(","), steps)


if __name__ == "__main__":
  jax.config.update("jax_threefry_partitionable", True)
  main()
