"""lvr_jax: train and audit latent visual reasoning in vision-language models."""
