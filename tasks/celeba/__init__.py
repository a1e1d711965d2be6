"""Latent fitting: a decoder is trained while the latent of every image is optimised inside it."""
