"""Model keys and residency, on an inventory of a few lines."""

from attrs import define, field, frozen

from foreman.scheduler.keys import UNKNOWN, KeyRegistry, ModelKey


@frozen
class Model:
    digest: str
    weights: frozenset[str]
    num_ctx: int | None


@frozen
class Loaded:
    digest: str
    context_length: int


@define
class Inventory:
    """Models by name; `loaded` is the last answer of /api/ps."""

    models: dict[str, Model] = field(factory=dict)
    loaded: list[Loaded] = field(factory=list)

    def add(self, name: str, weights: str, num_ctx: int | None = None) -> ModelKey:
        self.models[name] = Model(f"digest-{name}", frozenset({weights}), num_ctx)
        return ModelKey(frozenset({weights}), num_ctx)

    def load(self, name: str, context_length: int) -> None:
        """Replace what is loaded."""
        self.loaded = [Loaded(f"digest-{name}", context_length)]

    def model(self, name: str) -> Model | None:
        return self.models.get(name)

    def model_by_digest(self, digest: str) -> Model | None:
        return next((model for model in self.models.values() if model.digest == digest), None)


def test_names_of_the_same_weights_and_context_length_are_one_key() -> None:
    """A copy, or a create that only adds a system prompt, runs without a reload; another num_ctx does not."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "blob")
    inventory.add("copy", "blob")
    inventory.add("wide", "blob", 8192)
    assert keys.key("a") == keys.key("copy")
    assert keys.key("a") != keys.key("wide")


def test_a_name_that_is_not_installed_is_a_key_of_its_own() -> None:
    """It groups with itself and with nothing else; a body that cannot be read is UNKNOWN."""
    keys = KeyRegistry(Inventory())
    assert keys.key("new") == keys.key("new")
    assert len({keys.key("new"), keys.key("other"), keys.key(None)}) == 3
    assert keys.key(None) == UNKNOWN


def test_a_name_becomes_another_key_when_its_model_is_replaced() -> None:
    """Keys are made at the moment of asking."""
    inventory = Inventory()
    keys = KeyRegistry(inventory)
    inventory.add("a", "old")
    before = keys.key("a")
    inventory.add("a", "new")
    assert keys.key("a") != before


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


def test_an_entry_of_a_model_that_is_not_known_is_passed_over() -> None:
    """It may have been deleted while it was loaded."""
    inventory = Inventory(loaded=[Loaded("digest-gone", 4096)])
    assert KeyRegistry(inventory).resident() == frozenset()
