"""What becomes of a finished run: a model that needs no adapter, or a repository on the Hugging Face hub."""
