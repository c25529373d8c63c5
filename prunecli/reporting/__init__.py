"""Reports on checkpoints: read without torch, shown as a table, JSON, CSV, Markdown, or a page with pictures."""
