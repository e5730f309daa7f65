"""In which conversation, what was said: sessions and messages."""
