"""Behind `deqopt fit`, `validate`, `test` and `predict`: from what is typed to a run, and complaints in one line."""
