"""Self-supervised pre-training of BEATs, and fine-tuning on AudioSet."""
