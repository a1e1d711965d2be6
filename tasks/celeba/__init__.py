"""Latent fitting: trains an equilibrium decoder and optimises the latent of every image."""
