"""Few-shot meta-learning: the context of an episode is optimised jointly with the equilibria of its support set."""
