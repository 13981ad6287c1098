"""The corpus: sources are read, captioned, paired without duplicates or leaks, and written as shards."""
