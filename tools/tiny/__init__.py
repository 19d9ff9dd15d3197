"""How the tiny checkpoint is made: tokenizer, warm-up of its tower, offsets and model cards."""
