"""What small runs compute, to the bit: written before a change, compared after it.

  python tests/same_numbers.py --out=before                     # at the commit before
  python tests/same_numbers.py --out=after --compare=before     # after; prints what differs

Numbers are those of one machine and one version of jax, so no file of them is kept. Every process,
parameterization, objective, packing, accumulation and mesh trains six steps; then every sampler
draws, every estimator bounds, and compiled training steps say what they cost.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
DEVICES = 4

# What a run changes of `BASE`; configs are nested dicts, here with dots.
BASE = {
  "data.length": 32, "model.width": 32, "model.blocks": 2, "model.heads": 4, "model.cond_dim": 16,
  "model.dropout": 0.1, "optimizer.learning_rate": 1e-2, "optimizer.warmup": 2,
  "train.steps": 6, "train.batch_size": 8, "report.log_every": 1, "report.evaluate_every": 3,
  "report.evaluate_times": 2, "report.evaluate_blocks": 8, "report.final_blocks": 16,
  "report.preview_every": 0, "report.preview_steps": 4, "report.samples": 2,
  "checkpoint.every": 100, "checkpoint.keep_last": 1, "checkpoint.keep_every": 0,
}  # fmt: skip
UNIFORM = {
  "diffusion.process": "uniform", "diffusion.noise": "geometric",
  "diffusion.parameterization": "score",
}  # fmt: skip
CONDITIONAL = {"diffusion.parameterization": "conditional"}
UDLM = CONDITIONAL | {"diffusion.process": "uniform"}
EOS = {"data.tokenizer": "bytes:eos"}
RUNS = {
  "scaled": {},
  "score": {"diffusion.parameterization": "score"},
  "geometric": {"diffusion.noise": "geometric"},
  "conditional": CONDITIONAL,
  "mdlm": CONDITIONAL | {"model.time_input": False},
  "uniform": UNIFORM,
  "udlm": UDLM,
  "d3pm": CONDITIONAL | {"objective": "discrete_time", "diffusion.timesteps": 10},
  "autoregressive": {"objective": "autoregressive"},
  "iid": {"diffusion.time_sampling": "iid"},
  "accumulation": {"train.accumulation": 4},
  "pad": EOS | {"data.packing": "pad"},
  "pad given": EOS | {"data.packing": "pad", "data.fill": "given"},
  "pack": EOS | {"data.packing": "pack", "data.length": 512},
  "pack given": EOS | {"data.packing": "pack", "data.fill": "given", "data.length": 512},
  "autoregressive given": EOS
  | {"objective": "autoregressive", "data.packing": "pad", "data.fill": "given"},
  "mixture": {"data.files": "FIRST;SECOND", "data.weights": (2.0, 1.0)},
  "skip": {"train.skip_nonfinite": 2},
  "bfloat16": {"model.dtype": "bfloat16", "model.remat": "narrow"},
  "full": {"model.remat": "full", "optimizer.schedule": "cosine", "optimizer.weight_decay": 0.1},
  "splash": {"model.attention": "splash", "data.length": 128},
}
MESHES = {
  "replica": {"mesh.replica": 4},
  "fsdp": {"mesh.fsdp": 4},
  "tensor": {"mesh.fsdp": 1, "mesh.tensor": 4},
  "fsdp, tensor": {"mesh.fsdp": 2, "mesh.tensor": 2},
  "uniform": UNIFORM | {"mesh.fsdp": 2, "mesh.tensor": 2},
  "udlm": UDLM | {"mesh.fsdp": 2, "mesh.tensor": 2},
  "autoregressive": {"objective": "autoregressive", "mesh.fsdp": 2, "mesh.tensor": 2},
  "accumulation": {"mesh.fsdp": 4, "train.accumulation": 2},
}
SAMPLERS = {
  "scaled": (
    "tweedie", "euler", "ancestral", "first_hitting", "predictor_corrector", "remdm", "trapezoidal",
    "confidence", "entropy_bounded",
  ),
  "mdlm": ("tweedie", "ancestral"),
  "uniform": ("tweedie", "euler", "predictor_corrector", "trapezoidal"),
  "udlm": ("tweedie", "euler"),
}  # fmt: skip
OWN_TIMES = ("first_hitting", "entropy_bounded")


def nested(flat: dict[str, Any]) -> dict[str, Any]:
  """{"a.b": 1} as {"a": {"b": 1}}."""
  config: dict[str, Any] = {}
  for name, value in flat.items():
    *path, last = name.split(".")
    section = config
    for part in path:
      section = section.setdefault(part, {})
    section[last] = value
  return config


def digest(tree: Any) -> str:
  """Hash of all arrays of a tree."""
  import jax
  import numpy as np

  hashed = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(tree):
    array = np.asarray(leaf)
    hashed.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    hashed.update(np.ascontiguousarray(array).tobytes())
  return hashed.hexdigest()[:16]


def run_numbers(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
  """Losses, gradient norms, bounds, samples and weights of a run."""
  import sedd_jax
  from sedd_jax.training.experiment import Experiment
  from sedd_jax.training.loop import train

  assert train(Experiment.from_config(nested(BASE | changes)), folder) == 0
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  kept = ("loss_nats_per_sequence", "grad_norm", "learning_rate")
  return {
    **{name: [line[name].hex() for line in lines if name in line] for name in kept},
    "evaluation": json.loads((folder / "evaluation.json").read_text()),
    "samples": (folder / "samples" / "final_00000006.txt").read_text(),
    "weights": digest(sedd_jax.load(folder).params),
  }


def sample_numbers(folder: Path, samplers: tuple[str, ...]) -> dict[str, Any]:
  """Samples of every sampler and two seeds, infilling, scores and bounds of a run."""
  import numpy as np

  import sedd_jax

  model, found = sedd_jax.load(folder), {}
  tokens = np.arange(2 * model.length, dtype=np.int32).reshape(2, -1) % model.vocab_size
  given = tokens % 3 == 0
  for sampler in samplers:
    how = {"sampler": sampler} | ({} if sampler in OWN_TIMES else {"steps": 6})
    for seed in (0, 1):
      drawn = model.sample(3, seed=seed, **how)
      found[f"{sampler} {seed}"] = [*drawn[:, :8].tolist(), digest(drawn)]
    found[f"{sampler} cut"] = digest(model.sample(2, top_p=0.8, **how))
    found[f"{sampler} infill"] = digest(model.infill(tokens, given, **how))
  found["best"] = digest(model.generate(tokens, given, best_of=2).tokens)
  found["log_score"] = digest(model.log_score(tokens, np.array([0.3, 2.0], np.float32)))
  bound = model.bound(tokens, num_times=4)
  found["bound"] = [float(x).hex() for x in (*bound.paper, *bound.strict, *bound.strict_stderr)]
  return found


def causal_numbers(folder: Path) -> dict[str, Any]:
  """Samples, logits and likelihood of an autoregressive run."""
  import numpy as np

  import sedd_jax

  model = sedd_jax.load(folder)
  tokens = np.arange(2 * model.length, dtype=np.int32).reshape(2, -1) % model.vocab_size
  return {
    "sample": model.sample(3, seed=1, temperature=0.7)[:, :8].tolist(),
    "infill": digest(model.infill(tokens, np.arange(model.length)[None].repeat(2, 0) < 5)),
    "logits": digest(model.logits(tokens)),
    "log_prob": digest(model.log_prob(tokens)),
    "bound": [float(x).hex() for x in model.bound(tokens).strict],
  }


def step_costs(changes: dict[str, Any]) -> dict[str, float]:
  """Operations and bytes of a compiled training step on the mesh."""
  from sedd_jax.training.experiment import Experiment
  from sedd_jax.training.program import Program, mesh_of

  experiment = Experiment.from_config(nested(BASE | changes))
  program = Program(experiment=experiment, mesh=mesh_of(experiment), vocab_size=300)
  compiled = program.step.lower(program.state, program.batch).compile()
  memory = compiled.memory_analysis()
  return {
    "flops": compiled.cost_analysis()["flops"],
    "temporaries": memory.temp_size_in_bytes,
    "arguments": memory.argument_size_in_bytes,
  }


def part(devices: int, folder: Path, out: Path) -> None:
  """Writes all numbers of the runs on so many devices; goes on with a file that is there."""
  import jax

  jax.config.update("jax_num_cpu_devices", devices)
  found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
  for name, changes in (RUNS if devices == 1 else MESHES).items():
    if name in found:
      continue
    print(f"{devices} device(s), {name}", file=sys.stderr, flush=True)
    if "data.files" in changes:
      texts = [folder / "first.txt", folder / "second.txt"]
      for i, text in enumerate(texts):
        text.write_text("\n".join(f"line {j} of text {i}" for j in range(2000)))
      changes = changes | {"data.files": ";".join(map(str, texts))}
    workdir = folder / f"{devices} {name}"
    numbers = {"run": run_numbers(workdir, changes)}
    if devices > 1:
      numbers["costs"] = step_costs(changes)
    elif name == "autoregressive":
      numbers["samples"] = causal_numbers(workdir)
    elif name in SAMPLERS:
      numbers["samples"] = sample_numbers(workdir, SAMPLERS[name])
    if devices == 1 and name == "mdlm":
      for estimator in ("times", "lambda", "orders"):
        numbers[estimator] = estimate_numbers(workdir, estimator)
    found[name] = numbers
    out.write_text(json.dumps(found, indent=1) + "\n")


def estimate_numbers(folder: Path, estimator: str) -> dict[str, Any]:
  """What `sedd evaluate` prints of a bound by one estimator, on a text of its own."""
  text = folder.parent / "evaluated.jsonl"
  text.write_text(
    "".join(json.dumps({"text": f"words of document {i} " * 9}) + "\n" for i in range(9))
  )
  command = [
    sys.executable, "-m", "sedd_jax.cli.evaluate", f"--checkpoint={folder}", "--json",
    "--suite=zero-shot", "--sets=lambada", f"--data=lambada={text}", "--protocol=strict",
    f"--estimator={estimator}", "--num_times=4",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  (result,) = json.loads(done.stdout)["results"]
  return {name: result[name] for name in ("figures", "tokens", "sha256")}


def differences(before: Any, after: Any, path: str = "") -> list[str]:
  """A line for each number that is not the same."""
  if isinstance(before, dict) and isinstance(after, dict):
    names = [*before, *(name for name in after if name not in before)]
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [line for name, a, b in pairs for line in differences(a, b, f"{path}/{name}")]
  return [] if before == after else [f"{path}: {before} -> {after}"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--out", type=Path, required=True, help="folder of numbers; grows, goes on")
  parser.add_argument("--compare", type=Path, help="a folder of numbers, made before")
  parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
  options = parser.parse_args()
  options.out.mkdir(exist_ok=True)
  if options.devices:
    with tempfile.TemporaryDirectory() as folder:
      part(options.devices, Path(folder), options.out / f"{options.devices}.json")
    return
  lines = []
  for devices in (1, DEVICES):  # One device and several need processes of their own.
    command = [sys.executable, __file__, f"--devices={devices}", f"--out={options.out}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if options.compare:
      before, after = (
        json.loads((path / f"{devices}.json").read_text())
        for path in (options.compare, options.out)
      )
      lines += differences(before, after, f"{devices} device(s)")
  if options.compare:
    print("\n".join(lines) or "all numbers are the same")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
  main()
