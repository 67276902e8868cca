import os

import jax

# LLVM's last level takes three times as long to compile what draws random numbers, and none of it is faster for that.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=2"
# Shards need devices, and JAX takes their number before the first array only. Whatever asks for no mesh stays on one.
jax.config.update("jax_num_cpu_devices", 8)
