"""Task `cifar`: classifiers that withstand attacks, trained at the joint solution of state and perturbation."""
