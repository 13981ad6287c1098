"""From weights to masks: sliding windows, ensembling, decoding, whole folders of cases."""
