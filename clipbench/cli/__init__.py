"""Command lines: words to overrides, composing configs, errors in one line, exit statuses."""
