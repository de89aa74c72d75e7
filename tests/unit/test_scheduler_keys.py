"""Model keys and residency, on an inventory of a few lines."""

from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from foreman.runner_options import of_request
from foreman.scheduler.keys import UNKNOWN, KeyRegistry, ModelKey, Wanted
from foreman.testing.gpu import UNSET_OPTIONS, Runner


@frozen
class Model:
    digest: str
    weights: frozenset[str]
    options: str


@frozen
class Loaded:
    digest: str
    context_length: int


@define
class Inventory:
    """Models by name; `loaded` is the last answer of /api/ps."""

    models: dict[str, Model] = field(factory=dict)
    loaded: list[Loaded] = field(factory=list)

    def add(self, name: str, weights: str, num_ctx: int | None = None, **more: Any) -> ModelKey:
        """A model with its own parameters; its key, when a request says nothing more."""
        own = of_request(more | ({} if num_ctx is None else {"num_ctx": num_ctx}), None)
        self.models[name] = Model(f"digest-{name}", frozenset({weights}), own)
        return ModelKey(frozenset({weights}), tuple(sorted(more.items())), num_ctx)

    def load(self, name: str, context_length: int) -> None:
        """Replace what is loaded."""
        self.loaded = [Loaded(f"digest-{name}", context_length)]

    def model(self, name: str) -> Model | None:
        return self.models.get(name)

    def model_by_digest(self, digest: str) -> Model | None:
        return next((model for model in self.models.values() if model.digest == digest), None)


def wanted(name: str, shift: bool | None = None, **options: Any) -> Wanted:
    """What a body with these options wants."""
    return Wanted(name, of_request(options, shift))


def test_names_of_the_same_weights_and_context_length_are_one_key() -> None:
    """A copy, or a create that only adds a system prompt, runs without a reload; another num_ctx does not."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "blob")
    inventory.add("copy", "blob")
    inventory.add("wide", "blob", 8192)
    assert keys.key(Wanted("a")) == keys.key(Wanted("copy"))
    assert keys.key(Wanted("a")) != keys.key(Wanted("wide"))


def test_a_name_that_is_not_installed_is_a_key_of_its_own() -> None:
    """It groups with itself and with nothing else; a body that cannot be read is UNKNOWN."""
    keys = KeyRegistry(Inventory())
    assert keys.key(Wanted("new")) == keys.key(Wanted("new"))
    assert len({keys.key(Wanted("new")), keys.key(Wanted("other")), keys.key(None)}) == 3
    assert keys.key(None) == UNKNOWN


def test_a_name_becomes_another_key_when_its_model_is_replaced() -> None:
    """Keys are made at the moment of asking."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "old")
    before = keys.key(Wanted("a"))
    inventory.add("a", "new")
    assert keys.key(Wanted("a")) != before


def test_residency_wants_the_same_weights_and_an_agreeing_context_length() -> None:
    """An entry of /api/ps counts for every key of its weights whose num_ctx is its context_length."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    wide, narrow = inventory.add("wide", "blob", 8192), inventory.add("narrow", "blob", 2048)
    other = inventory.add("other", "blob2", 8192)
    inventory.load("wide", 8192)
    assert wide in keys.resident()
    assert not keys.resident() & {narrow, other}
    inventory.load("wide", 2048)  # loaded by that name, with another num_ctx in the request's options
    assert narrow in keys.resident()
    assert wide not in keys.resident()


def test_an_unset_num_ctx_agrees_with_an_entry_whose_own_model_has_none_until_it_was_seen_to_run() -> None:
    """Before foreman ran it, only a model without num_ctx can have loaded it as the target would."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    plain = inventory.add("plain", "blob")
    inventory.add("wide", "blob", 8192)
    inventory.load("wide", 8192)
    assert plain not in keys.resident()
    inventory.load("plain", 4096)
    assert plain in keys.resident()


def test_an_unset_num_ctx_agrees_with_what_was_shown_when_it_last_ran() -> None:
    """After that the context length decides, whoever loaded it."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    plain = inventory.add("plain", "blob")
    inventory.add("wide", "blob", 4096)
    keys.ran(plain, now=1.0)
    inventory.load("plain", 4096)
    keys.inventory_read(asked_at=2.0)
    inventory.load("plain", 8192)  # somebody asked for it with options
    assert plain not in keys.resident()
    inventory.load("wide", 4096)
    assert plain in keys.resident()
    keys.ran(plain, now=3.0)
    inventory.load("plain", 16384)  # the target was started again with another default
    keys.inventory_read(asked_at=4.0)
    assert plain in keys.resident()
    inventory.load("plain", 4096)
    assert plain not in keys.resident()


def test_a_num_ctx_that_the_target_cuts_agrees_with_what_was_shown_when_it_last_ran() -> None:
    """Ollama cuts a num_ctx that is larger than what the model was trained for."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    huge = inventory.add("huge", "blob", 1_000_000)
    keys.ran(huge, now=1.0)
    inventory.load("huge", 32768)
    keys.inventory_read(asked_at=2.0)
    assert huge in keys.resident()


def test_after_a_swap_only_the_key_that_ran_is_resident_until_the_next_reading() -> None:
    """The swap may have evicted the others; an answer that was asked for before it does not count."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    a, b = inventory.add("a", "blob-a"), inventory.add("b", "blob-b")
    inventory.load("a", 4096)
    keys.ran(b, now=10.0)
    assert keys.resident() == {b}
    for asked_at in (9.0, None):
        keys.inventory_read(asked_at)
        assert keys.resident() == {b}
    inventory.loaded.append(Loaded("digest-b", 4096))  # there was room for both
    keys.inventory_read(asked_at=10.0)
    assert {a, b} <= keys.resident()


def test_a_key_that_ran_without_a_swap_leaves_the_others_resident() -> None:
    """Nothing was loaded, so nothing was evicted."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    a, b = inventory.add("a", "blob-a"), inventory.add("b", "blob-b")
    inventory.loaded = [Loaded("digest-a", 4096), Loaded("digest-b", 4096)]
    keys.ran(a, now=1.0)
    assert {a, b} <= keys.resident()


def test_swaps_that_follow_each_other_before_a_reading() -> None:
    """The last one counts."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    a, b = inventory.add("a", "blob-a"), inventory.add("b", "blob-b")
    for now, key in [(1.0, a), (2.0, b), (3.0, a)]:
        keys.ran(key, now)
        assert keys.resident() == {key}


def test_an_unreadable_body_is_never_resident_and_teaches_nothing() -> None:
    """Most often the target refuses it and loads nothing."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    a = inventory.add("a", "blob-a")
    inventory.load("a", 4096)
    keys.ran(UNKNOWN, now=1.0)
    assert a in keys.resident()
    assert UNKNOWN not in keys.resident()


SAME, OTHER = True, False


@pytest.mark.parametrize(
    ("own", "one", "other", "same"),
    [
        ({}, {}, {"temperature": 1, "num_predict": 5, "num_keep": 8}, SAME),
        ({}, {"num_ctx": 2048}, {"num_ctx": 2048.0}, SAME),
        ({}, {"num_ctx": 2048}, {"num_ctx": 4096}, OTHER),
        ({}, {}, {"num_ctx": 4096}, OTHER),  # until it is known which one the target takes
        ({}, {"num_ctx": 0}, {"num_ctx": 4}, SAME),
        ({"num_ctx": 2048}, {}, {"num_ctx": 2048.0}, SAME),
        ({"num_ctx": 2048}, {"num_ctx": 4096}, {}, OTHER),
        ({"num_gpu": 9, "use_mmap": False}, {}, {"num_gpu": 9, "use_mmap": False}, SAME),
        ({"use_mmap": False}, {}, {"use_mmap": True}, OTHER),
        ({}, {}, {"use_mmap": True}, OTHER),
        ({}, {}, {"use_mmap": None}, SAME),
        ({}, {}, {"num_gpu": -1}, SAME),
        ({}, {"num_gpu": -1}, {"num_gpu": -7}, SAME),
        ({"num_gpu": 9}, {}, {"num_gpu": -1}, OTHER),
        ({}, {}, {"num_gpu": 0}, OTHER),
        ({}, {}, {"num_thread": 0, "main_gpu": 0}, SAME),
        ({"main_gpu": 1}, {}, {"main_gpu": 0}, OTHER),
        ({}, {}, {"num_thread": 8}, OTHER),
        ({}, {}, {"num_batch": 512}, OTHER),
        ({}, {}, {"draft_num_predict": 4}, OTHER),
        ({}, {}, {"shift": True}, SAME),
        ({}, {}, {"shift": False}, OTHER),
        ({}, {"shift": False, "num_ctx": 8}, {"num_ctx": 8.0, "shift": False}, SAME),
    ],
)
def test_when_options_make_another_key(own: Any, one: Any, other: Any, same: bool) -> None:
    """They are compared as Ollama does: the request's over the model's own, or what it has for none."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "blob", **own)
    assert (keys.key(wanted("a", **one)) == keys.key(wanted("a", **other))) is same


def test_a_child_that_only_adds_a_system_prompt_shares_its_parents_key() -> None:
    """Another name and digest, the same blob; its own parameter counts as if the request had said it."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("parent", "blob")
    inventory.add("child", "blob")
    inventory.add("wide-child", "blob", 8192)
    assert keys.key(Wanted("child")) == keys.key(Wanted("parent"))
    assert keys.key(wanted("child", num_ctx=8192)) == keys.key(Wanted("wide-child"))
    assert keys.key(wanted("wide-child", num_ctx=512)) == keys.key(wanted("parent", num_ctx=512))


def test_options_of_a_name_that_is_not_installed_keep_its_lines_apart() -> None:
    """It may be installed while they wait."""
    keys = KeyRegistry(Inventory())
    assert keys.key(wanted("new", num_ctx=512)) != keys.key(Wanted("new"))
    assert keys.key(wanted("new", num_ctx=512)) == keys.key(wanted("new", num_ctx=512.0))


def seen(keys: KeyRegistry, inventory: Inventory, key: ModelKey, name: str, context_length: int) -> None:
    """This key ran, and a reading of /api/ps shows what it loaded."""
    keys.granted(key)
    keys.ran(key, now=1.0)
    inventory.load(name, context_length)
    keys.inventory_read(asked_at=1.0)


def test_an_explicit_num_ctx_that_is_the_automatic_one_is_the_same_key() -> None:
    """Ollama does not reload for it; the key without one stays as it is, so that its visit goes on."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    unset = inventory.add("a", "blob")
    inventory.add("own", "blob", 4096)
    seen(keys, inventory, unset, "a", 4096)
    assert keys.key(Wanted("a")) == unset
    assert keys.key(wanted("a", num_ctx=4096)) == keys.key(Wanted("own")) == unset
    assert keys.key(wanted("a", num_ctx=8192)) != unset
    assert keys.key(wanted("a", num_ctx=4096, use_mmap=True)).num_ctx == 4096  # that was never seen
    assert keys.key(wanted("a", num_ctx=4096, shift=False)).num_ctx == 4096
    seen(keys, inventory, unset, "a", 8192)  # the target has another default now
    assert keys.key(wanted("a", num_ctx=8192)) == unset
    assert keys.key(wanted("a", num_ctx=4096)) != unset


def test_the_context_length_of_another_load_is_not_learnt() -> None:
    """While a prompt is processed /api/ps shows the new runner, and its first byte is not here yet."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    unset = inventory.add("a", "blob")
    seen(keys, inventory, unset, "a", 4096)
    keys.ran(unset, now=10.0)
    wide = keys.key(wanted("a", num_ctx=8192))
    keys.granted(wide)
    inventory.load("a", 8192)
    keys.inventory_read(asked_at=20.0)
    assert keys.key(wanted("a", num_ctx=8192)) == wide != unset
    assert keys.key(wanted("a", num_ctx=4096)) == unset
    keys.ran(wide, now=25.0)
    keys.inventory_read(asked_at=30.0)
    assert wide in keys.resident()
    assert unset not in keys.resident()


def test_of_one_context_length_only_the_options_that_foreman_ran_are_resident() -> None:
    """/api/ps says nothing of the other options."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    plain = inventory.add("a", "blob")
    for asked in (
        wanted("a", num_batch=64),
        wanted("a", shift=False),
        wanted("a", num_batch=64, num_ctx=512),
    ):
        key = keys.key(asked)
        seen(keys, inventory, key, "a", key.num_ctx or 4096)
        assert key in keys.resident()
        assert plain not in keys.resident()
        assert keys.key(wanted("a", use_mmap=True)) not in keys.resident()
    seen(keys, inventory, plain, "a", 4096)
    assert keys.resident() & {plain, keys.key(wanted("a", num_batch=64))} == {plain}


def test_what_foreman_never_ran_is_taken_to_be_loaded_with_its_models_own_options() -> None:
    """So is what somebody else loaded anew: its context length changed, or it was gone in between."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    own = inventory.add("a", "blob", num_gpu=9)
    inventory.load("a", 4096)
    assert own in keys.resident()
    odd = keys.key(wanted("a", num_batch=64))
    assert odd not in keys.resident()
    seen(keys, inventory, odd, "a", 4096)
    assert odd in keys.resident()
    inventory.load("a", 2048)
    keys.inventory_read(asked_at=2.0)
    assert keys.key(wanted("a", num_ctx=2048)) in keys.resident()
    seen(keys, inventory, odd, "a", 4096)
    inventory.loaded = []
    keys.inventory_read(asked_at=3.0)
    inventory.load("a", 4096)
    keys.inventory_read(asked_at=4.0)
    assert own in keys.resident()
    assert odd not in keys.resident()


def test_a_runner_with_any_num_gpu_serves_a_request_that_leaves_it_open() -> None:
    """Not the other way round; and its own num_gpu stays the runner's after such a request."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    unset = inventory.add("a", "blob")
    inventory.add("b", "blob-b")
    inventory.load("b", 4096)
    some, more = keys.key(wanted("a", num_gpu=10)), keys.key(wanted("a", num_gpu=11))
    keys.ran(some, now=1.0)
    assert keys.resident() == {some, unset}
    keys.ran(unset, now=2.0)
    assert keys.resident() == {some, unset}  # that was no swap, but b may be gone since the one before
    inventory.load("a", 4096)
    keys.inventory_read(asked_at=2.0)
    assert {some, unset} <= keys.resident()
    assert more not in keys.resident()
    keys.ran(keys.key(Wanted("b")), now=3.0)
    keys.ran(unset, now=4.0)
    assert keys.resident() == {unset}


def test_an_explicit_num_ctx_that_foreman_loaded_is_not_taken_for_the_automatic_one() -> None:
    """Although the model that shows in /api/ps has none of its own."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    unset = inventory.add("a", "blob")
    wide = keys.key(wanted("a", num_ctx=8192))
    seen(keys, inventory, wide, "a", 8192)
    assert wide in keys.resident()
    assert unset not in keys.resident()


def test_invented_context_lengths_are_not_remembered_for_ever() -> None:
    """A caller may ask for a larger one each time; the target cuts it, and foreman learns that it does."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "blob")
    huge = [keys.key(wanted("a", num_ctx=100_000 + more)) for more in range(1000)]
    for key in huge:
        seen(keys, inventory, key, "a", 32768)
    assert huge[-1] in keys.resident()
    assert len(keys.resident()) < 300


def test_what_was_unloaded_is_not_resident() -> None:
    """Neither as what ran last nor, once the inventory has forgotten it, as what was read; its next run is
    a swap with options that nobody else has taken part in.
    """
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    plain, wide = inventory.add("a", "blob"), keys.key(wanted("a", num_ctx=8192))
    seen(keys, inventory, wide, "a", 8192)
    keys.ran(wide, now=5.0)
    inventory.loaded = []
    keys.unloaded(frozenset({"blob"}))
    assert keys.resident() == frozenset()
    keys.ran(plain, now=6.0)
    assert keys.resident() == {plain}


def test_what_was_unloaded_leaves_the_others_alone() -> None:
    """Of what a swap evicted nobody knows more than before; what ran last stays when others go."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    a, b = inventory.add("a", "blob-a"), inventory.add("b", "blob-b")
    inventory.load("b", 4096)
    keys.ran(a, now=1.0)
    keys.unloaded(frozenset({"blob-b"}))
    assert keys.resident() == {a}
    keys.unloaded(frozenset({"blob-a"}))
    assert keys.resident() == frozenset()  # b may have been evicted, whatever the old list says
    keys.inventory_read(asked_at=2.0)
    assert b in keys.resident()


def test_an_entry_of_a_model_that_is_not_known_is_passed_over() -> None:
    """It may have been deleted while it was loaded."""
    inventory = Inventory(loaded=[Loaded("digest-gone", 4096)])
    assert KeyRegistry(inventory).resident() == frozenset()


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "num_ctx": st.sampled_from([2048, 2048.0, 4096, 8192]),
        "num_gpu": st.sampled_from([-1, 0, 10]),
        "num_thread": st.sampled_from([0, 4]),
        "use_mmap": st.booleans(),
    },
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), OPTIONS, st.sampled_from([None, True, False])), max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.dictionaries(st.sampled_from(["num_ctx", "num_gpu"]), st.sampled_from([2048, 4096]), max_size=2),
)
def test_what_is_called_resident_is_never_loaded(asked: list[Any], readings: list[bool], own: Any) -> None:
    """Against the fake's runner, which nobody else uses: a key that is held for resident does not reload."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "blob")
    inventory.add("b", "blob", **own)
    inventory.add("c", "blob-c")
    own_of = {"a": {}, "b": own, "c": {}}
    runner: tuple[str, int, dict[str, Any]] | None = None
    for moment, ((name, options, shift), reads) in enumerate(zip(asked, readings, strict=False)):
        key = keys.key(wanted(name, shift, **options))
        effective = {"num_ctx": 4096, **UNSET_OPTIONS, "shift": True, **own_of[name], **options}
        if shift is not None:
            effective["shift"] = shift
        context = int(effective.pop("num_ctx"))
        reload = (
            runner is None
            or (name == "c") != (runner[0] == "c")
            or not Runner(None, runner[1], runner[2], None).serves(context, effective)
        )
        if key in keys.resident():
            assert not reload
        keys.granted(key)
        if reload:
            runner = (name, context, effective)
        keys.ran(key, now=float(moment))
        if reads:
            inventory.load(runner[0], runner[1])
            keys.inventory_read(asked_at=float(moment))
