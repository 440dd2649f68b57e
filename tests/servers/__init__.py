"""Real mail servers and a real name server for the tests, started on loopback and thrown away."""
