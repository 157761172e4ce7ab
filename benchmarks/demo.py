"""Seconds until `sedd demo` answers, until its first token, and of a whole request.

python -m benchmarks.demo --checkpoint=runs/quickstart
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.report import print_line


def main() -> None:
  """Prints the line."""
  flags = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
  flags.add_argument("--checkpoint", help="as in sedd demo")
  flags.add_argument("--steps", type=int, default=64)
  flags.add_argument("--repeats", type=int, default=10, help="timed requests")
  options = flags.parse_args()
  command = [sys.executable, "-m", "sedd_jax.cli.demo", "--port=0"]
  if options.checkpoint is not None:
    command.append(f"--checkpoint={options.checkpoint}")
  started = time.monotonic()
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert server.stdout is not None
  address = server.stdout.readline().split()
  if not address:
    sys.exit(server.wait())
  seconds_to_address = time.monotonic() - started
  port = int(address[0].rsplit(":", 1)[1])
  try:
    first, *others = [
      timed(port, {"template": "[[*]]", "steps": options.steps, "seed": seed})
      for seed in range(options.repeats + 1)
    ]
    print_line(
      "demo",
      [whole for _, whole in others],
      steps=options.steps,
      seconds_to_address=seconds_to_address,
      seconds_to_first_token=[token for token, _ in others],
      first_request={"seconds_to_first_token": first[0], "seconds": first[1]},
      server_resident_bytes=_resident(server.pid),
    )
  finally:
    server.send_signal(signal.SIGTERM)
    server.wait()


def timed(port: int, fields: dict[str, Any]) -> tuple[float, float]:
  """Seconds to the first drawn token and to the end of a request that is streamed."""
  started, to_token = time.monotonic(), None
  for kind, data in _events(port, fields):
    if to_token is None and kind == "step" and data["step"] and data["changes"]:
      to_token = time.monotonic() - started
  assert to_token is not None
  return to_token, time.monotonic() - started


def _events(port: int, fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
  connection = http.client.HTTPConnection("127.0.0.1", port)
  connection.request("POST", "/v1/infill", json.dumps({**fields, "stream": True}))
  kind = ""
  for line in connection.getresponse():
    name, _, value = line.decode().rstrip("\n").partition(": ")
    if name == "event":
      kind = value
    elif name == "data":
      yield kind, json.loads(value)


def _resident(pid: int) -> int | None:
  """Bytes of memory of a process, where the system tells."""
  try:
    with open(f"/proc/{pid}/status") as file:
      line = next(line for line in file if line.startswith("VmRSS:"))
  except (OSError, StopIteration):
    return None
  return 1024 * int(line.split()[1])


if __name__ == "__main__":
  main()
