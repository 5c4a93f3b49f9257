from nanorlhf.nanoray.codes import FIRST_CODE, Codes
from nanorlhf.nanoray.objects import Objects

CODE = FIRST_CODE + 7


def make(held=()):
    objects = Objects()
    for number in held:
        objects.create(number, process=0)
    return objects, Codes(objects)


def test_code_lives_while_a_function_is_alive_or_a_call_is_not_over():
    _, codes = make()
    codes.add(0, CODE, b"f", held=())
    codes.pin(CODE)
    codes.hold(0, CODE, -1)
    assert codes.take_freed() == []
    assert codes[CODE] == b"f"
    codes.unpin(CODE)
    assert codes.take_freed() == [CODE]
    assert len(codes) == 0


def test_equal_functions_are_counted_together():
    _, codes = make()
    codes.add(0, CODE, b"f", held=())
    codes.add(0, CODE, b"f", held=())
    codes.add(5, CODE, b"f", held=())
    codes.hold(0, CODE, -1)
    codes.drop_process(5)
    assert codes.take_freed() == []
    codes.hold(0, CODE, -1)
    assert codes.take_freed() == [CODE]


def test_code_that_comes_back_before_it_was_taken_away_stays():
    objects, codes = make(held=[1])
    codes.add(0, CODE, b"f", held=[1])
    objects.hold(0, 1, -1)
    codes.hold(0, CODE, -1)
    codes.add(0, CODE, b"f", held=[1])
    assert codes.take_freed() == []
    assert objects.take_freed() == []
    codes.hold(0, CODE, -1)
    assert codes.take_freed() == [CODE]
    assert [dead.id for dead in objects.take_freed()] == [1]
