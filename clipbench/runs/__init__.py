"""A run from config to record (`execute`), many of them (`sweep`), the `record`, and `provenance`."""

from clipbench.extras import need

need("filelock", "hydra", "omegaconf", "pandas", "psutil", "pyarrow", "pydantic", "tqdm", "yaml")
