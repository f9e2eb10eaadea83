"""Random steps on flow models: the formulas, the sampler, what it records for training, and the replay of that."""
