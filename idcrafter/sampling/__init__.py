"""Takes of one shot: seeds, noise, guidance, and the store that lets an interrupted run continue."""
