"""Takes of one shot: seeds, noise, guidance, the search among takes, and the store that lets a broken run go on."""
