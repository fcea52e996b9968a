"""What a prompt asks for: nouns, their counts, and the text tokens that mention them."""
