import pytest

from nanorlhf.nanotron.schedule import Op, draw, forward_only, gpipe, one_f_one_b, simulate

SIZES = [(stages, m) for stages in range(1, 9) for m in (*range(9), 16, 31, 32)]


@pytest.mark.parametrize("rendezvous", [False, True])
@pytest.mark.parametrize("make", [gpipe, one_f_one_b, forward_only])
def test_every_schedule_completes_in_order_without_deadlock(make, rendezvous):
    for stages, m in SIZES:
        simulate(make(stages, m), m, rendezvous=rendezvous)


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
def test_every_microbatch_starts_after_what_it_needs(make):
    for stages, m in SIZES:
        spans = simulate(make(stages, m), m).spans
        at = {(s, span.op): span for s, row in enumerate(spans) for span in row}
        for (stage, op), span in at.items():
            if op.kind == "F" and stage:
                assert span.start >= at[stage - 1, op].stop
            if op.kind == "B":
                source = (stage + 1, op) if stage + 1 < stages else (stage, Op("F", op.microbatch))
                assert span.start >= at[source].stop


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
def test_the_bubble_is_the_known_formula(make):
    for stages, m in SIZES:
        if m:
            bubble = simulate(make(stages, m), m).bubble
            assert bubble == pytest.approx((stages - 1) / (m + stages - 1))


def test_1f1b_holds_no_more_microbatches_than_stages_ahead():
    for stages, m in SIZES:
        peaks = simulate(one_f_one_b(stages, m), m).in_flight
        assert peaks == [min(m, stages - stage) for stage in range(stages)]
        assert simulate(gpipe(stages, m), m).in_flight == [m] * stages


def test_the_drawing_shows_each_stage_on_its_line():
    assert draw(gpipe(2, 1)) == "0 |F0 .  .  .  B0 B0\n1 |.  F0 B0 B0 .  ."


def test_a_schedule_that_waits_for_itself_is_refused():
    backward_first = [[Op("B", 0), Op("F", 0)]]
    with pytest.raises(ValueError, match=r"deadlock.*kind='B', microbatch=0"):
        simulate(backward_first, 1)


def test_a_schedule_that_skips_or_reorders_microbatches_is_refused():
    with pytest.raises(ValueError, match="stage 1 does not run each microbatch once"):
        simulate([[Op("F", 0)], []], 1)
    turned = [[Op("F", 0), Op("F", 1)], [Op("F", 1), Op("F", 0)]]
    with pytest.raises(ValueError, match="stage 1 moves microbatches in another order"):
        simulate(turned, 2)


def test_a_schedule_fine_with_buffers_may_deadlock_when_senders_wait():
    """Stage 1 waits for stage 2 to take F2, stage 2 for stage 1 to take B0."""
    alternating = [Op(kind, i) for i in range(4) for kind in ("F", "B")]
    pairs = [Op(kind, 2 * i + j) for i in range(2) for kind in ("F", "B") for j in range(2)]
    schedule = [*gpipe(2, 4), pairs, alternating]
    simulate(schedule, 4)
    with pytest.raises(ValueError, match="deadlock"):
        simulate(schedule, 4, rendezvous=True)
