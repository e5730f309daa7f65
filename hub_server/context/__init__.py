"""What an assistant needs to answer: memories, knowledge and history, within a budget of tokens.

The one place that looks into chat, memory and knowledge at once.
"""
