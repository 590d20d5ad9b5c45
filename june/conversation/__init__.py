"""One turn of a conversation, and what belongs to it."""
