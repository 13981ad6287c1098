"""CLIP models: assembled by open_clip from a JSON, loaded strictly, stored as safetensors and JSON."""
