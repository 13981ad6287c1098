"""Sentences from labels: a grammar, a language model behind an endpoint, or a local one; checked and cached."""
