"""Language models as pure functions: decoder, heads, Hugging Face, sampling, scoring."""
