"""The commands of `cpo-ray`, one file each. `cpo_ray.cli` assembles them."""
