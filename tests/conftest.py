import jax

# Shards need devices, and JAX takes their number before the first array only. Whatever asks for no mesh stays on one.
jax.config.update("jax_num_cpu_devices", 8)
