"""A run from config to record (`execute`), many of them (`sweep`), the `record`, and `provenance`."""
