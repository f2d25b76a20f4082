"""How good the answers are, beside how fast: perplexity, KL divergence, middles."""
