"""One file a network: what it is trained on, its loss, its schedule and how it is exported."""
