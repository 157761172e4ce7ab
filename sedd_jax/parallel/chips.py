"""Vendors' figures for their chips.

Sources, read on 2026-11-21: the Cloud TPU documentation's pages of each generation
(docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x). Bandwidths there are per chip; ICI is
given for both directions, and a chip can send half of it. DCN of v5e and v6e is the pod's divided
by its 256 chips. GPUs (only for MFU): the data sheets of A100 and H100 / H200 (SXM, dense
bfloat16).
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Peak figures of one chip.

  Attributes:
    flops: bfloat16 operations per second.
    hbm_bytes: HBM capacity.
    hbm_bandwidth: bytes per second.
    ici_bandwidth: bytes per second that a chip can send inside a slice, over all its links.
    dcn_bandwidth: bytes per second that a chip can send to other slices; None if not published.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float | None


_GIB = 2**30

TPUS = {
  "v4": Chip(
    flops=275e12, hbm_bytes=32 * _GIB, hbm_bandwidth=1.2e12, ici_bandwidth=300e9, dcn_bandwidth=None
  ),
  "v5e": Chip(
    flops=197e12, hbm_bytes=16 * _GIB, hbm_bandwidth=819e9, ici_bandwidth=200e9,
    dcn_bandwidth=25e9 / 8,
  ),
  "v5p": Chip(
    flops=459e12, hbm_bytes=95 * _GIB, hbm_bandwidth=2.765e12, ici_bandwidth=600e9,
    dcn_bandwidth=50e9 / 8,
  ),
  "v6e": Chip(
    flops=918e12, hbm_bytes=32 * _GIB, hbm_bandwidth=1.638e12, ici_bandwidth=400e9,
    dcn_bandwidth=100e9 / 8,
  ),
  "tpu7x": Chip(
    flops=2307e12, hbm_bytes=192 * _GIB, hbm_bandwidth=7.38e12, ici_bandwidth=600e9,
    dcn_bandwidth=100e9 / 8,
  ),
}  # fmt: skip

# Peak bfloat16 operations per second of a jax device, by the start of `device.device_kind`.
# A device is a whole chip on v4 and v5p, and half a chip on TPU7x.
_DEVICE_FLOPS = (
  ("TPU v4", 275e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5", 459e12),
  ("TPU v6", 918e12),
  ("TPU7x", 2307e12 / 2),
  ("NVIDIA A100", 312e12),
  ("NVIDIA H100", 989e12),
  ("NVIDIA H200", 989e12),
)


def device_flops(kind: str) -> float | None:
  """Peak bfloat16 operations per second of a device kind; None if unknown, as for CPUs."""
  return next((flops for start, flops in _DEVICE_FLOPS if kind.startswith(start)), None)
