"""The public interface, by way of `lvr_jax`: a model is opened, asked, swept and audited from Python."""
