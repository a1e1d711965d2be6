"""Task `denoising`: restores images from measurements, and learns the prior by differentiating through the optimum."""
