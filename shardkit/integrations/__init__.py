"""Trainers: what each needs so that an already sharded loader reaches the model untouched."""
