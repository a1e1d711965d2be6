"""Contests of solvers: strategies of deqopt, torchdeq and the published joint method on the same problems."""
