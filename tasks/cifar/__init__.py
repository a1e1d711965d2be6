"""Task `cifar`: robust classifiers, trained at the joint solution for state and perturbation."""
