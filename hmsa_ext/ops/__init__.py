"""The fused ops: ``torch.ops.hmsa.*`` and their forms for people."""

from hmsa_ext.ops import dispatch, library

library.load()

from hmsa_ext.ops.fuse_scales import fuse_scales  # noqa: E402  (the library must be loaded first)

for _name in ("fuse_scales", "_fuse_scales_backward"):
    dispatch.explain_missing_cuda(_name)

__all__ = ["fuse_scales"]
