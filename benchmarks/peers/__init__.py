"""Plain servers to compare with: the least that relays our wire, as each library's own examples would have it."""
