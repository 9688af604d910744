<?php

/**
 * One request of the thread-safe host. Prints what is wrong, and nothing else.
 *
 * Every request publishes one message on `load`, in one of the ways there are, and leaves behind what the end of a request
 * has to clear: requests of other threads run meanwhile, and the next one of this thread must find nothing of it.
 */

$name = "$engine/$thread/$request";
$wrong = fn (string $what) => print("$name: $what\n");
$kind = $request % 6;
if ($kind === 0) {
    broadcast('load', $name);
} elseif ($kind === 1) {
    Realtime\batch(fn () => broadcast('load', $name));
    try {
        Realtime\batch(function () {
            broadcast('load', 'never');
            throw new DomainException('out');
        });
        $wrong('a batch swallowed an exception');
    } catch (DomainException) {
    }
} elseif ($kind === 2) {
    $receipt = Realtime\publish('load', $name);
    $receipt->accepted && $receipt->matched === 1 || $wrong("publish(): $receipt->matched subscribers");
} elseif ($kind === 3) {
    try {
        broadcast("bad\nname", 1);
        $wrong('a bad channel was accepted');
    } catch (Realtime\Exception\InvalidChannel) {
    }
    broadcast(['load'], $name, as: 'message', options: ['except' => null]);
} elseif ($kind === 4) {
    broadcast('load', $name);
    $fake = Realtime\Testing\fake();
    broadcast('load', "fake $name");
    $seen = array_column($fake->recorded(), 'message');
    $seen === ["fake $name"] || $wrong('the fake saw ' . json_encode($seen));
    // And is not restored.
} else {
    broadcast('load', $name);
    Realtime\off();
    broadcast('load', 'never');
}
Realtime\stats()['connections'] ?? null ?: in_array($kind, [4, 5], true) || $wrong('no hub, or nobody is connected');
