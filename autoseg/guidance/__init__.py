"""Words for labels: the anatomy lexicon, sentences, and text banks, which carry sentences' vectors to the segmenter."""
