"""Faults of one of several processes."""

from __future__ import annotations

FAULTS: dict[str, tuple] = {}
