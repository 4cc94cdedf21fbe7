"""Act on a plan, after rehearsing what can be cut: a smaller network of the same class, made on a copy and held against the replay; saved and loaded."""

from sned.surgery.checkpoint import load, save
from sned.surgery.probe import trace
from sned.surgery.pytorch import apply

__all__ = ["apply", "load", "save", "trace"]
