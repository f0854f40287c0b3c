"""Four small kernels as PTX, launched through the driver alone: what checking a device needs, without torch.

The driver compiles PTX when it is loaded, so nothing has to be built. ``smid`` finds out on which SMs a
stream runs, ``read`` and ``copy`` measure memory, ``fault`` is the accident that fault drills need.
"""

import ctypes as c
from collections.abc import Sequence

from muxd.device.driver import Driver

PTX = """
.version 7.0
.target sm_75
.address_size 64

// out[block] = the SM this block runs on; each block stays for `cycles`, so that the blocks spread out
.visible .entry smid(.param .u64 p_out, .param .u64 p_cycles)
{
    .reg .pred %p<3>; .reg .b32 %r<4>; .reg .b64 %d<8>;
    mov.u64 %d1, %clock64;
    ld.param.u64 %d2, [p_out];
    ld.param.u64 %d3, [p_cycles];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra STAY;
    cvta.to.global.u64 %d4, %d2;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %d5, %r2, 4;
    add.u64 %d4, %d4, %d5;
    mov.u32 %r3, %smid;
    st.global.u32 [%d4], %r3;
STAY:
    mov.u64 %d6, %clock64;
    sub.u64 %d7, %d6, %d1;
    setp.lt.u64 %p2, %d7, %d3;
    @%p2 bra STAY;
    ret;
}

// out[0] ^= all words of src[0, n); n: 16-byte words, a multiple of 4 * threads
.visible .entry read(.param .u64 p_src, .param .u64 p_out, .param .u64 p_n)
{
    .reg .pred %p<2>; .reg .b32 %r<24>; .reg .b64 %d<16>;
    ld.param.u64 %d1, [p_src];
    ld.param.u64 %d2, [p_n];
    cvta.to.global.u64 %d1, %d1;
    mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %tid.x;
    mul.wide.u32 %d3, %r1, %r2;        // threads
    mul.wide.u32 %d4, %r3, %r2;
    cvt.u64.u32 %d5, %r4;
    add.u64 %d4, %d4, %d5;             // this one
    shl.b64 %d6, %d4, 4;
    add.u64 %d6, %d1, %d6;
    shl.b64 %d7, %d3, 4;               // bytes to the next of its four words
    shl.b64 %d8, %d3, 6;
    shl.b64 %d9, %d3, 2;
    mov.u32 %r5, 0;
MORE:
    add.u64 %d10, %d6, %d7;
    add.u64 %d11, %d10, %d7;
    add.u64 %d12, %d11, %d7;
    ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%d6];
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d10];
    ld.global.v4.u32 {%r14, %r15, %r16, %r17}, [%d11];
    ld.global.v4.u32 {%r18, %r19, %r20, %r21}, [%d12];
    xor.b32 %r6, %r6, %r7; xor.b32 %r8, %r8, %r9; xor.b32 %r10, %r10, %r11; xor.b32 %r12, %r12, %r13;
    xor.b32 %r14, %r14, %r15; xor.b32 %r16, %r16, %r17; xor.b32 %r18, %r18, %r19; xor.b32 %r20, %r20, %r21;
    xor.b32 %r6, %r6, %r8; xor.b32 %r10, %r10, %r12; xor.b32 %r14, %r14, %r16; xor.b32 %r18, %r18, %r20;
    xor.b32 %r6, %r6, %r10; xor.b32 %r14, %r14, %r18; xor.b32 %r6, %r6, %r14; xor.b32 %r5, %r5, %r6;
    add.u64 %d6, %d6, %d8;
    add.u64 %d4, %d4, %d9;
    setp.lt.u64 %p1, %d4, %d2;
    @%p1 bra MORE;
    ld.param.u64 %d13, [p_out];
    cvta.to.global.u64 %d13, %d13;
    atom.global.xor.b32 %r22, [%d13], %r5;
    ret;
}

// dst[0, n) = src[0, n); n as above
.visible .entry copy(.param .u64 p_src, .param .u64 p_dst, .param .u64 p_n)
{
    .reg .pred %p<2>; .reg .b32 %r<22>; .reg .b64 %d<18>;
    ld.param.u64 %d1, [p_src];
    ld.param.u64 %d2, [p_n];
    ld.param.u64 %d13, [p_dst];
    cvta.to.global.u64 %d1, %d1;
    cvta.to.global.u64 %d13, %d13;
    mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %tid.x;
    mul.wide.u32 %d3, %r1, %r2;
    mul.wide.u32 %d4, %r3, %r2;
    cvt.u64.u32 %d5, %r4;
    add.u64 %d4, %d4, %d5;
    shl.b64 %d6, %d4, 4;
    add.u64 %d13, %d13, %d6;
    add.u64 %d6, %d1, %d6;
    shl.b64 %d7, %d3, 4;
    shl.b64 %d8, %d3, 6;
    shl.b64 %d9, %d3, 2;
MORE:
    add.u64 %d10, %d6, %d7;
    add.u64 %d11, %d10, %d7;
    add.u64 %d12, %d11, %d7;
    ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%d6];
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d10];
    ld.global.v4.u32 {%r14, %r15, %r16, %r17}, [%d11];
    ld.global.v4.u32 {%r18, %r19, %r20, %r21}, [%d12];
    add.u64 %d14, %d13, %d7;
    add.u64 %d15, %d14, %d7;
    add.u64 %d16, %d15, %d7;
    st.global.v4.u32 [%d13], {%r6, %r7, %r8, %r9};
    st.global.v4.u32 [%d14], {%r10, %r11, %r12, %r13};
    st.global.v4.u32 [%d15], {%r14, %r15, %r16, %r17};
    st.global.v4.u32 [%d16], {%r18, %r19, %r20, %r21};
    add.u64 %d6, %d6, %d8;
    add.u64 %d13, %d13, %d8;
    add.u64 %d4, %d4, %d9;
    setp.lt.u64 %p1, %d4, %d2;
    @%p1 bra MORE;
    ret;
}

// a write to an address that is not mapped
.visible .entry fault(.param .u64 p_nowhere)
{
    .reg .b32 %r<2>; .reg .b64 %d<2>;
    ld.param.u64 %d1, [p_nowhere];
    mov.u32 %r1, 1;
    st.global.u32 [%d1], %r1;
    ret;
}
"""

_THREADS = 512
_PER_SM = 2  # blocks of 1024 threads that fit an SM, and that ``sms_of`` wants on each
_CYCLES = 2_000_000  # about a millisecond: longer than launching all blocks takes


class Kernels:
    """The loaded module. Needs a current context, and serves it and its green contexts."""

    def __init__(self, driver: Driver):
        self._driver = driver
        module = c.c_void_p()
        driver.call("cuModuleLoadData", c.byref(module), c.c_char_p(PTX.encode()))
        self._functions = {}
        for name in ("smid", "read", "copy", "fault"):
            function = c.c_void_p()
            driver.call("cuModuleGetFunction", c.byref(function), module, c.c_char_p(name.encode()))
            self._functions[name] = function

    def launch(
        self, name: str, blocks: int, arguments: Sequence[int], *, threads: int = _THREADS, stream: int = 0
    ) -> None:
        """Start a kernel; all arguments are 64 bits wide. Does not wait."""
        values = [c.c_uint64(argument) for argument in arguments]
        pointers = (c.c_void_p * len(values))(*(c.addressof(value) for value in values))
        grid = (blocks, 1, 1, threads, 1, 1, 0)
        self._driver.call(
            "cuLaunchKernel",
            *(self._functions[name], *(c.c_uint(size) for size in grid)),
            *(c.c_void_p(stream), pointers, None),
        )

    def sms_of(self, stream: int, out: int, sms: int) -> frozenset[int]:
        """The SMs that ``stream`` runs on. ``out``: device memory for 4 bytes for each of ``2 * sms`` blocks.

        Blocks that fill their SM stay long enough for all SMs to get some.
        """
        blocks = _PER_SM * sms
        self._driver.fill_bytes(out, 0xFF, 4 * blocks)
        self._driver.synchronize()
        self.launch("smid", blocks, (out, _CYCLES), threads=1024, stream=stream)
        self._driver.synchronize()
        raw = self._driver.to_host(out, 4 * blocks)
        return frozenset(int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4))
