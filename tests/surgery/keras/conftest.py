"""Keras is optional: without it, nothing here is collected. Which backend runs is for `KERAS_BACKEND` to say."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("keras") else ["test_*.py"]
