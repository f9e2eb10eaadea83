"""What reinforcement learning minimises, one file a method: pure functions over tensors.

B takes of a batch, each a latent [C, T, h, w]. Velocities are the model's own prediction: v = noise - clip for flow
matching, and what `Noising.target` says for others. What comes back is a dict of tensors [B], of which "loss" has the
gradient and is to be averaged, and the others are worth watching. Half-precision inputs are computed with in float32.
"""
