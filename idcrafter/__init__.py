"""IDCrafter's library: everything that the nodes do, usable without the graph."""
