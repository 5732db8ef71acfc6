"""The mirror as Hugging Face transformers uses models. Nothing else here needs that package."""
