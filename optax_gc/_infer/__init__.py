"""The axes of every weight, read off the model's own computation.

A view (`_views`) holds, for each stored axis of a parameter (`_uses`), the stored coordinate of every element of a
value, as an array over named dims (`_arrays`). The walk (`_walk`) takes views through the program by rules (`_layout`,
`_pieces`, `_writes`, `_maths`, `_choices`, `_products` with `_units`, `_convolutions`, `_loops` with `_carries`,
`_devices`), with what every result has beside its views (`_results`): what is known of data (`_facts`) and of what may
hide a product (`_masks`). A sum of products is one unit until it is read (`_reads`). Each use is judged by the sets
that its units sum over (`_judge`).
"""

from optax_gc._infer._api import infer_axes as infer_axes
