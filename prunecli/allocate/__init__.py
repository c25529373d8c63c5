"""Allocation: scores and a target in, widths or masks out. Selection is by count, never by threshold; ties go by index."""
