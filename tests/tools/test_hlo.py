"""What a program moves, computes and costs is read right from its HLO: loops, overlapped pieces, branches, kernels."""

import numpy as np
import pytest

from aot import arithmetic, bill, collectives, hlo, roofline, traffic
from aot.page import page
from aot.report import Compiled, line, most
from aot.slices import memory_error

HLO = """HloModule jit_step, is_scheduled=true

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %end = s32[]{:T(128)} constant(36)
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %end), direction=LT
}

%begins (a: bf16[2,4]) -> (bf16[2,4], bf16[8,4]) {
  %a = bf16[2,4]{1,0} parameter(0)
  %first = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=7, dimensions={0}
  ROOT %started = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) custom-call(%first), custom_call_target="AsyncCollectiveStart"
}

%goes_on (b: bf16[2,4]) -> bf16[8,4] {
  %b = bf16[2,4]{1,0} parameter(0)
  ROOT %again = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%b), channel_id=7, dimensions={0}
}

%body (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %one = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) fusion(%x), kind=kCustom, calls=%begins
  %two = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%goes_on
  %ring = (f32[2,4]{1,0}, f32[2,4]{1,0}, u32[], u32[]) collective-permute-start(%y), channel_id=8, pairs={{0,1}}
  ROOT %out = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%i, %z)
}

ENTRY %main (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  %loop = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %sums = (f32[]{:T(128)}, bf16[16]{0}) all-reduce(%m, %n), channel_id=9, to_apply=%add
  ROOT %part = f32[2,4]{1,0} reduce-scatter(f32[8,4]{1,0} %r), channel_id=10, dimensions={0}
}
"""


def test_collectives_are_counted_once_a_turn_of_their_loop():
    """An all-gather that is cut into two overlapped pieces is one; a ring's step counts what it receives."""
    assert collectives.by_kind(collectives.collectives(HLO)) == {
        "all-gather": {"times": 36, "bytes": 36 * 8 * 4 * 2},
        "all-reduce": {"times": 1, "bytes": 4 + 32},
        "reduce-scatter": {"times": 1, "bytes": 8 * 4 * 4},
        "collective-permute": {"times": 36, "bytes": 36 * 2 * 4 * 4},
    }
    exposed = {c.kind for c in collectives.collectives(HLO) if c.exposed}
    assert exposed == {"all-reduce", "reduce-scatter"}, "the others run in pieces or between start and end"


TWO_SLICES = """HloModule jit_step, is_scheduled=true

ENTRY %main (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  %part = f32[2,4]{1,0} reduce-scatter(f32[8,4]{1,0} %r), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %ring.1 = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=1, pairs={{0,1}}
  %ring.2 = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%b), channel_id=1, pairs={{0,1}}
  %alone.1 = f32[8,4]{1,0} all-reduce(%r), channel_id=2, replica_groups={{0},{1}}, to_apply=%add
  %alone.2 = f32[8,4]{1,0} all-reduce(%r), channel_id=3, replica_groups=[2,1]<=[2], to_apply=%add
  %send = (f32[2,4]{1,0}, u32[], token[]) send(%part, %t), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-gather.1_0",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv = (f32[2,2,4]{2,1,0}, u32[], token[]) recv(%t), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-gather.1_0",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv-done = (f32[2,2,4]{2,1,0}, token[]) recv-done(%recv), channel_id=4, is_host_transfer=true
  ROOT %out = f32[8,4]{1,0} copy(%r)
}
"""  # noqa: E501


def test_what_travels_between_slices_is_counted_apart():
    """There channels are shared, a transfer is a send and a receive, and a sum over one chip moves nothing."""
    assert collectives.by_kind(collectives.collectives(TWO_SLICES)) == {
        "reduce-scatter": {"times": 1, "bytes": 8 * 4 * 4},
        "collective-permute": {"times": 2, "bytes": 2 * 2 * 4},
        "all-gather between slices": {"times": 1, "bytes": 2 * 2 * 4 * 4},
    }


RING = """HloModule ring, is_scheduled=true

%condition (p: (u32[], f32[8,4])) -> pred[] {
  %p = (u32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %end = u32[]{:T(128)} constant(8)
  %at = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %end), direction=LT
}

%body (q: (u32[], f32[8,4])) -> (u32[], f32[8,4]) {
  %q = (u32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%q), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %x = f32[8,4]{1,0} get-tuple-element(%q), index=1
  %ring = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=8, pairs={{0,1}}
  %y = f32[8,4]{1,0} collective-permute-done(%ring)
  ROOT %out = (u32[]{:T(128)}, f32[8,4]{1,0}) tuple(%next, %y)
}

ENTRY %main (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  ROOT %loop = (u32[]{:T(128)}, f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_loop_that_counts_unsigned_and_by_two_runs_half_as_often():
    """As XLA writes the rings of a windowed einsum."""
    assert collectives.by_kind(collectives.collectives(RING)) == {
        "collective-permute": {"times": 4, "bytes": 4 * 8 * 4 * 4}
    }


NETWORK = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/lvr_jax/training/step.py"
2 "/x/lvr_jax/models/qwen2_5_vl/vision.py"
3 "/x/lvr_jax/models/qwen2_5_vl/text.py"
4 "/x/lvr_jax/models/attention.py"
5 "/x/lvr_jax/models/qwen2_5_vl/layers.py"

FunctionNames
1 "train_step"
2 "VisionBlock.__call__"
3 "DecoderBlock.__call__"
4 "_splash"
5 "SwiGLU.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=1}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=1}
3 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=1}
4 {file_name_id=4 function_name_id=4 line=1 end_line=1 column=1 end_column=1}
5 {file_name_id=5 function_name_id=5 line=1 end_line=1 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=4 parent_frame_id=3}
4 {file_location_id=3 parent_frame_id=2}
5 {file_location_id=5 parent_frame_id=5}
6 {file_location_id=4 parent_frame_id=5}

%product (a: bf16[512,80], w: bf16[36,80,256], i: s32[]) -> bf16[512,256] {
  %a = bf16[512,80]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[36,80,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %one = bf16[1,80,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%w, %i, %z, %z), dynamic_slice_sizes={1,80,256}
  %flat = bf16[80,256]{1,0:T(8,128)(2,1)} bitcast(%one)
  ROOT %dot = bf16[512,256]{1,0:T(8,128)(2,1)} convolution(%a, %flat), dim_labels=bf_io->bf, metadata={op_name="jit(step)/transpose(jvp())/RD,DF->RF/dot_general" stack_frame_id=5}
}

%windows (p: bf16[16]) -> bf16[16] {
  %p = bf16[16]{0} parameter(0)
  ROOT %w = bf16[16]{0} negate(%p), metadata={op_name="jit(step)/jvp()/cond" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"800"}}
}

%whole (p: bf16[16]) -> bf16[16] {
  %p = bf16[16]{0} parameter(0)
  ROOT %f = bf16[16]{0} negate(%p), metadata={op_name="jit(step)/jvp()/cond" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"8000"}}
}

ENTRY %main (x: bf16[512,80], w: bf16[36,80,256], n: s32[], s: bf16[16]) -> bf16[512,256] {
  %x = bf16[512,80]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[36,80,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %n = s32[]{:T(128)} parameter(2)
  %s = bf16[16]{0} parameter(3)
  %c = bf16[16]{0} conditional(%n, %s, %s), branch_computations={%windows, %whole}, metadata={op_name="jit(step)/jvp()/cond" stack_frame_id=2}
  %splash_mqa_fwd_segmented.1 = (f32[2,512,128]{2,1,0:T(8,128)}, bf16[2,8,2048,128]{3,2,1,0:T(8,128)(2,1)S(1)}) custom-call(%m, %q), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}, bf16[2,8,2048,128]{3,2,1,0}, bf16[2,2048,128]{2,1,0}, s32[8,2048]{1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 1024}"
}}, metadata={op_name="jit(step)/transpose(jvp())/checkpoint/rematted_computation/pallas_call" stack_frame_id=6}, backend_config={}
  %copied = bf16[512,80]{0,1:T(8,128)(2,1)} copy(%x), backend_config={"window_config":{"estimated_cycles":"30"}}
  %up = (bf16[512,80]{1,0:T(8,128)(2,1)S(1)}, bf16[512,80]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %upped = bf16[512,80]{1,0:T(8,128)(2,1)S(1)} copy-done(%up)
  %some = ((bf16[512,80]{1,0:T(8,128)(2,1)}), bf16[64,80]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:64], [0:80]}
  %somed = bf16[64,80]{1,0:T(8,128)(2,1)S(1)} slice-done(%some)
  ROOT %fusion = bf16[512,256]{1,0:T(8,128)(2,1)} fusion(%copied, %w, %n), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"5000"}}
}
"""  # noqa: E501


def tower(conditional, branch):
    return (7 / 8, 1 / 8)[branch]


def test_a_bill_is_by_part_of_the_network_and_by_pass():
    """A fusion is named after its product, a nameless copy after what it feeds; a branch counts as often as taken."""
    found = bill.by_part(bill.costs(NETWORK, tower))
    assert found == {
        "decoder MLP": {"forward": 0, "again": 0, "backward": 5030, "products": 5000},
        "tower attention": {"forward": 700 + 1000, "again": 0, "backward": 0, "products": 0},
    }
    assert bill.unpriced(NETWORK) == 0


def test_a_program_with_instructions_that_have_no_estimate_has_no_plan():
    """libtpu writes 2^63 - 1 for what its cost model of tpu7x does not know: the sum was 1.8e12 s a step."""
    unknown = NETWORK.replace('"5000"', '"9223372036854775807"').replace('"800"', '"9223372036854775807"')
    assert bill.unpriced(unknown) == 2
    assert bill.by_part(bill.costs(unknown, tower)) == {
        "tower attention": {"forward": 1000, "again": 0, "backward": 0, "products": 0},
        "decoder MLP": {"forward": 0, "again": 0, "backward": 30, "products": 0},
    }
    found = roofline.roofline("TPU7x", (2, 2, 4), 16, cycles=None, products=1e15, kernels=[], hbm_bytes=1e9, moved=[],
                              model_flops=1e15)  # fmt: skip
    assert found.plan is None and found.mfu is None and found.bound_by == "MXU" and 0 < found.roof < 1
    seconds = {"kernels": 0.1, "exposed": 0.1, "mxu": 2, "hbm": 1, "ici": 0.5}
    record = {
        "config": "lvr 7b", "program": "train", "slice": "tpu7x-32", "topology": "tpu7x:2x2x4", "mesh": "fsdp 32",
        "rows": 64, "accumulate": 2, "tokens": 16384, "conditions": None, "most_rows": None, "fits": True,
        "options": {}, "total": 2**30, "memory": 2**31, "arguments": 1, "temporaries": 1, "output": 1, "aliased": 0,
        "collectives": {}, "model_flops": 1e15, "compile_seconds": 1,
        "speed": {"unpriced": 2, "seconds": seconds, "bound_by": "MXU"},
    }  # fmt: skip
    assert line(record)["plan s"] == "" and line(record)["MFU <="] == "" and line(record)["MXU s"] == "2"
    assert "no plan: the compiler has no estimate of 2 instructions; MXU 2 s, HBM 1 s" in page([record])


def test_products_and_kernels_are_counted_in_flops():
    assert arithmetic.products(NETWORK) == 2 * 512 * 80 * 256
    (kernel,) = arithmetic.kernels(NETWORK)
    assert (kernel.part, kernel.heads, kernel.queries, kernel.keys) == ("decoder attention", 16, 2048, 2048)
    assert kernel.block == (512, 1024) and kernel.products == 2
    # Four blocks of queries see 1, 1, 2 and 2 blocks of keys.
    assert kernel.pairs(causal=True) == 6 * 512 * 1024 and kernel.pairs(causal=False) == 2048**2
    # Of two segments each block of queries sees the one block of keys that is its own segment's.
    assert kernel.pairs(causal=True, segment=np.repeat([1, 2], 1024)) == 4 * 512 * 1024
    assert kernel.flops(10, unit=128) == 2 * 2 * 16 * 10 * 128 == kernel.flops(10, unit=256) / 2


@pytest.mark.parametrize(
    "line, left, right, expected",
    [
        # Into heads: [512, 80] x [80, 16, 64]; of the window's positions one in 16 is not padding.
        ("%o = bf16[512,16,64]{2,1,0} convolution(%a, %b), window={size=16 pad=15_15 rhs_reversal=1}, "
         "dim_labels=bf0_i0o->b0f", (512, 80, 1), (80, 16, 64), 2 * 512 * 80 * 16 * 64),
        # Out of heads: they are summed over with the width.
        ("%o = bf16[512,64,1]{2,1,0} convolution(%a, %b), window={size=16}, dim_labels=bf0_0io->bf0",
         (512, 80, 16), (16, 80, 64), 2 * 512 * 64 * 16 * 80),
        # A batch of 16 products [512, 80] x [80, 512].
        ("%o = f32[16,512,512]{2,1,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, "
         "dim_labels=0bf_0io->0bf", (16, 512, 80), (16, 80, 512), 2 * 16 * 512 * 512 * 80),
    ],
)  # fmt: skip
def test_a_convolution_is_counted_where_its_operand_is(line, left, right, expected):
    each = hlo.instruction(f"  {line}")
    shapes = {"a": hlo.Array("bf16", left), "b": hlo.Array("bf16", right)}
    assert arithmetic.product_flops(each, shapes) == expected


def test_hbm_traffic_counts_tiles_slices_and_what_lies_on_chip():
    """80 numbers take 128 places, of stacked weights one layer is read, and VMEM is not HBM."""
    conditional = 2 * (2 * 16 * 2)
    kernel = 2 * 512 * 128 * 4
    copy = 512 * 128 * 2 + 512 * 80 * 2             # of the copy, 512 is the minor dimension
    fusion = 512 * 80 * 2 + 80 * 256 * 2 + 4 + 512 * 256 * 2
    up = 512 * 128 * 2 + 64 * 128 * 2               # read here and written to VMEM
    assert traffic.hbm_bytes(NETWORK) == conditional + kernel + copy + fusion + up


def test_the_roofline_is_the_slowest_unit_and_the_plan_has_the_kernels_added():
    (kernel,) = arithmetic.kernels(NETWORK)
    moved = [
        collectives.Collective("all-reduce", (hlo.Array("f32", (10**9,)),), 1),
        collectives.Collective("all-gather", (hlo.Array("f32", (10**9,)),), 1, exposed=True),
        collectives.Collective("all-gather", (hlo.Array("f32", (10**9,)),), 1, between_slices=True, exposed=True),
    ]
    found = roofline.roofline(
        "TPU v5 lite", (4, 4), 16, cycles=3e9, products=197e12, kernels=[(kernel, 197e12 / (4 * 16 * 128))],
        hbm_bytes=819e9, moved=moved, model_flops=16 * 197e12,
    )  # fmt: skip
    assert found.plan == pytest.approx(2 + 1 + 0.04) and found.kernels == pytest.approx(1)
    assert found.mxu == pytest.approx(1 + 1) and found.hbm == pytest.approx(1)
    assert found.ici == pytest.approx((2 * 4e9 + 4e9) / (2 * 50e9)) and found.bound_by == "MXU"
    assert found.exposed == pytest.approx(0.04)
    assert found.mfu == pytest.approx(1 / 3.04) and found.roof == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind, sizes, expected", [
    ("TPU v5 lite", (4, 4), 2), ("TPU v5 lite", (16, 16), 4), ("TPU v5 lite", (1, 1), 1), ("TPU v6 lite", (8, 16), 3),
    ("TPU v5", (2, 2, 1), 2), ("TPU v5", (2, 2, 4), 3), ("TPU v5", (4, 4, 4), 6),
])  # fmt: skip
def test_a_chip_at_the_corner_has_so_many_links(kind, sizes, expected):
    assert roofline.links(sizes, roofline.CHIPS[kind]) == expected


@pytest.mark.parametrize(
    "message, expected",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) exceeds "
         "available HBM (15.75G).", (8 * 2**40, int(15.75 * 2**30))),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm. Exceeded hbm capacity "
         "by 4.76G.", (int(20.51 * 2**30), int(15.75 * 2**30))),
    ],
)  # fmt: skip
def test_the_compilers_refusal_says_what_is_needed(message, expected):
    assert memory_error(message) == expected


def test_another_error_of_the_compiler_is_not_taken_for_a_full_chip():
    with pytest.raises(ValueError, match="Mosaic failed"):
        memory_error("INTERNAL: Mosaic failed to compile")


@pytest.mark.parametrize("first", [1, 3, 9])
@pytest.mark.parametrize(
    "base, slope, memory, expected", [(2, 3, 16, 4), (5, 1, 16, 11), (17, 1, 16, 0), (2, 15, 16, 0)]
)
def test_the_search_ends_between_one_that_fits_and_one_that_does_not(first, base, slope, memory, expected):
    tried = {}

    def measure(k: int) -> Compiled:
        assert k >= 1 and k not in tried, "compiled twice"
        tried[k] = Compiled(base + slope * k <= memory, base + slope * k, 0.0)
        return tried[k]

    assert most(measure, memory, first) == expected
    assert expected == 0 or tried[expected].fits
    assert not tried[expected + 1].fits and len(tried) <= 5
