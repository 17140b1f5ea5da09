"""Trainers: what each needs so that an already sharded loader reaches the model untouched.

A module each, which imports no trainer but its own and what that is built on: `accelerate`,
`deepspeed`, `trainer` (with `evaluation`), `lightning`, `trl` and `trl_preference`, `xtuner`. Out
of shardkit: `hf_export`, `jsonl_export`, `llamafactory` and `hub_folder`, onto `outputs` that are
new.
"""
