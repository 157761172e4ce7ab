"""The model card of an exported folder: known facts about a model, and nothing else."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from sedd_jax.generation.model import Model

# How to load, by layout.
_LOADING = {
  "sedd_jax": """```python
import sedd_jax

model = sedd_jax.load("FOLDER")
print({sample})
```""",
  "original": """In the layout of the original PyTorch code
(louaaron/Score-Entropy-Discrete-Diffusion):

```python
from load_model import load_model

model, graph, noise = load_model("FOLDER", "cuda")
```

`sedd_jax.load("FOLDER")` reads it too.""",
}


def model_card(model: Model, layout: str, weights: str) -> str:
  """README.md of an export: YAML front matter for the hub, then Markdown.

  Args:
    layout: one of `_LOADING`.
    weights: their dtype on disk.
  """
  network = model.network
  process = network.process.name
  sample = "model.decode(model.sample(4, steps=64))"
  if model.tokenizer is None:
    sample = "model.sample(4, steps=64)"
  data = ModelCardData(
    library_name="sedd_jax",
    pipeline_tag="text-generation",
    tags=["sedd", "discrete-diffusion", process],
  )
  return f"""---
# license: not stated; choose one before publishing
{data.to_yaml()}
---

# A discrete diffusion language model

Exported by sedd_jax. It generates text by running {process} noise backwards (score entropy discrete
diffusion, arXiv:2310.16834).

{_table(_facts(model, weights))}

## Loading

{_LOADING[layout].format(sample=sample)}

## Bound on held-out text

{_bound(model.info.get("evaluation"))}
"""


def _facts(model: Model, weights: str) -> Iterator[tuple[str, str]]:
  network, shape = model.network, model.network.config
  noise = ", ".join(f"{k}={v:g}" for k, v in dataclasses.asdict(model.noise).items())
  yield "process", network.process.name
  yield "noise", f"{type(model.noise).__name__} ({noise})"
  yield "parameterization", network.parameterization
  yield "network sees the noise", "yes" if shape.time_input else "no"
  yield "vocabulary", f"{network.process.vocab_size:,} tokens"
  yield "length", f"{model.length:,} tokens"
  yield "width, blocks, heads", f"{shape.width}, {shape.blocks}, {shape.heads}"
  yield "width of the conditioning", str(shape.cond_dim)
  yield "parameters", f"{network.num_parameters():,}, {weights}"
  yield "tokenizer", "none" if model.tokenizer is None else type(model.tokenizer).__name__
  step = model.info.get("step")
  yield "training step", "not known" if step is None else f"{step:,}"
  yield "weights from", str(model.info.get("origin", "not known"))
  corpus = model.info.get("corpus")
  yield "corpus", "not known" if not corpus else "; ".join(f"{k} {v}" for k, v in corpus.items())


def _table(facts: Iterator[tuple[str, str]]) -> str:
  rows = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts)
  return f"| what | value |\n|---|---|\n{rows}"


def _bound(evaluation: Mapping[str, Any] | None) -> str:
  if evaluation is None:
    return "Not measured."
  return (
    "Bits per character, ± one standard error of the Monte Carlo estimate: "
    + ", ".join(
      f"{kind} {evaluation[f'heldout_bits_per_char_{kind}']:.4f} "
      f"± {evaluation[f'heldout_bits_per_char_{kind}_stderr']:.4f}"
      for kind in ("strict", "paper")
    )
    + f" (step {evaluation['step']:,})."
  )
