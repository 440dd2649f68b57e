"""The crash test: a worker under load that is killed again and again, and an account of all mail."""
