"""Qwen2.5-VL: config, vision tower, decoder, and the table of its Hugging Face tensors."""
