"""Retraining: budgets, shapes and first weights of a network trained from scratch, and rewinding to a snapshot."""
