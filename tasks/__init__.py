"""The tasks that come with deqopt. Each is a folder of its own and is found through its entry point only."""
