"""Allocation: scores and a target in, widths or masks out. Selection is by exact count; ties go by index."""
