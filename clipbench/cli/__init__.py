"""Command lines: words to overrides, composing configs, errors in one line, exit statuses."""

from clipbench.extras import need

need("hydra", "omegaconf", "pydantic", "yaml")
