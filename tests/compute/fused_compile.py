"""Compile the fused programs for a GPU of the capability 9.0, without one.

A process of its own: Triton's interpreter must be off when Triton is imported.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from skconvrfm.compute.fused import tiles
from skconvrfm.kernels import ConvNNGP, ConvNTK

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64"}


class Compiler:
    """Stand-in of a program, whose launches compile it once for their constants."""

    def __init__(self, program):
        self.program, self.seen = program, set()

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, num_warps, enable_fp_fusion, **constants):
        if str(constants) in self.seen:
            return
        self.seen.add(str(constants))
        kinds = [
            POINTERS[a.dtype] if isinstance(a, torch.Tensor) else "i32"
            for a in arguments
        ]
        names = self.program.arg_names[: len(kinds)]
        signature = dict(zip(names, kinds, strict=True))
        source = ASTSource(
            self.program,
            signature | dict.fromkeys(constants, "constexpr"),
            constants,
        )
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        assert triton.compile(source, target=TARGET, options=options).asm["cubin"]


tiles.up, tiles.down = programs = Compiler(tiles.up), Compiler(tiles.down)
for Kernel, dtype in ((ConvNTK, torch.float32), (ConvNNGP, torch.float64)):
    kernel = Kernel.specimen()
    images = torch.rand((3, *kernel.image_shape_), dtype=dtype)
    block, every = kernel.prepare_block(images, None), slice(0, 3)
    opened = tiles.FusedTiles(kernel, block, block, 2**24)
    opened.value(every, every)
    opened.pullback(every, every, images.new_ones((3, 1)))
print(*(len(program.seen) for program in programs))
