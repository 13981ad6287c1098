"""First weights from images without labels: the pretext tasks, what they are compared with, and their record."""
