"""Is what a program moves between chips read right from its HLO: loops, overlapped pieces, branches?"""

import pytest

from aot import hlo
from aot.report import Compiled, most
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
    assert hlo.by_kind(hlo.collectives(HLO)) == {
        "all-gather": {"times": 36, "bytes": 36 * 8 * 4 * 2},
        "all-reduce": {"times": 1, "bytes": 4 + 32},
        "reduce-scatter": {"times": 1, "bytes": 8 * 4 * 4},
        "collective-permute": {"times": 36, "bytes": 36 * 2 * 4 * 4},
    }


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
    assert hlo.by_kind(hlo.collectives(TWO_SLICES)) == {
        "reduce-scatter": {"times": 1, "bytes": 8 * 4 * 4},
        "collective-permute": {"times": 2, "bytes": 2 * 2 * 4},
        "all-gather between slices": {"times": 1, "bytes": 2 * 2 * 4 * 4},
    }


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
