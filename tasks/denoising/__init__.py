"""Task `denoising`: images are restored from measurements, and learned from through the optimum."""
