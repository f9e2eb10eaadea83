"""Rollouts: groups of takes with their rewards, on disk, for training a model on what it made itself.

`record` is what a group's file holds, `store` the folder, `index` a cache of it, `dataset` what a trainer reads,
`advantages` what it makes of the rewards, `export` other formats. Pure tensors and dicts: nothing here imports ComfyUI
or knows how takes are sampled.
"""
