"""What is remembered: memories and their recall."""
