"""Folders: the checkout, and what may lie beside it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHARED = REPOSITORY.parent / "shared"
