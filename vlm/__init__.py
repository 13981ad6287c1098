"""The vision-language side of autoseg: a corpus of image-sentence pairs, a CLIP model, text banks."""
