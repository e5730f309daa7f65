"""What is known: documents, chunks and their search."""
