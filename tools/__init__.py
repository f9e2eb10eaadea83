"""What run.py is made of: set-up, the server process, its client, the demo. Standard library only."""
