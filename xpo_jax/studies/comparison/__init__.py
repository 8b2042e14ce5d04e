"""Every objective that pairs can train, compared at equal KL."""
