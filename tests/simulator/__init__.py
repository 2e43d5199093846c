"""A cluster on one clock: a model of its store, a network that loses, nodes that crash, and what has to hold."""
