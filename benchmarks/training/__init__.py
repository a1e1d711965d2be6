"""Races of trainings: methods that are trained for the same time, and what they have learned by then."""
