"""The object table against a graph that is searched from its roots: slow and obviously right."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanorlhf.nanoray.objects import Objects
from nanorlhf.nanoray.value import Value

VALUE = Value(None, ((0, 9),), (), (1, 0, 9))
PROCESSES = st.integers(0, 3)


class Graph(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.objects = Objects()
        self.num = 0
        self.held = Counter()
        """(process, object or its negative for views) -> number."""
        self.pins = Counter()
        self.inside = {}
        """Object -> what it contains, once it is ready."""
        self.freed = set()

    def live(self):
        """Everything that can be reached."""
        todo = {abs(key) for (_, key), n in self.held.items() if n} | {*+self.pins}
        found = set()
        while todo:
            number = todo.pop()
            found.add(number)
            todo |= set(self.inside.get(number, ())) - found
        return found

    def pick(self, index):
        live = sorted(self.live())
        return live[index % len(live)]

    @rule(process=PROCESSES)
    def create(self, process):
        self.num += 1
        self.objects.create(self.num, process)
        self.held[process, self.num] += 1

    @precondition(lambda self: self.live())
    @rule(process=PROCESSES, index=st.integers(0, 99), is_view=st.booleans())
    def hold(self, process, index, is_view):
        key = self.pick(index) * (-1 if is_view else 1)
        self.objects.hold(process, key, 1)
        self.held[process, key] += 1

    @precondition(lambda self: +self.held)
    @rule(index=st.integers(0, 99))
    def let_go(self, index):
        process, key = sorted(+self.held)[index % len(+self.held)]
        self.held[process, key] -= 1
        self.objects.hold(process, key, -1)

    @precondition(lambda self: self.live())
    @rule(index=st.integers(0, 99))
    def pin(self, index):
        number = self.pick(index)
        self.pins[number] += 1
        self.objects.pin(number)

    @precondition(lambda self: +self.pins)
    @rule(index=st.integers(0, 99))
    def unpin(self, index):
        number = sorted(+self.pins)[index % len(+self.pins)]
        self.pins[number] -= 1
        self.objects.unpin(number)

    @precondition(lambda self: self.live() - {*self.inside})
    @rule(index=st.integers(0, 99), indices=st.lists(st.integers(0, 99), max_size=3))
    def complete(self, index, indices):
        waiting = sorted(self.live() - {*self.inside})
        number = waiting[index % len(waiting)]
        # A value is made of refs to older objects, so no object ever contains itself.
        older = sorted(o for o in self.live() if o < number)
        inside = [older[i % len(older)] for i in indices if older]
        self.inside[number] = inside
        self.objects.complete(number, VALUE, contains=inside)

    @rule(process=PROCESSES)
    def die(self, process):
        self.held = Counter({key: n for key, n in self.held.items() if key[0] != process})
        self.objects.drop_process(process)

    @invariant()
    def what_is_reachable_lives_and_nothing_else(self):
        freed = [dead.id for dead in self.objects.take_freed()]
        assert len({*freed}) == len(freed), "freed once"
        assert self.freed.isdisjoint(freed), "freed once"
        self.freed |= {*freed}
        live = self.live()
        assert self.freed.isdisjoint(live)
        assert self.freed | live == {*range(1, self.num + 1)}
        assert {listed.id for listed in self.objects.listing()} == live
        assert {number for number, _ in self.objects.resident()} == live & {*self.inside}

    @invariant()
    def holders_and_views_are_known(self):
        for listed in self.objects.listing():
            keys = [key for key, n in self.held.items() if n and abs(key[1]) == listed.id]
            assert {*listed.holders} == {process for process, _ in keys}
            views = self.objects.get(listed.id).views
            assert views == sum(number < 0 for _, number in keys)


Graph.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_objects_live_as_long_as_they_can_be_reached = Graph.TestCase
