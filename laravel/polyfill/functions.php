<?php

/**
 * The extension's functions in plain PHP, for where it is not loaded: a laptop, CI, shared hosting.
 * They speak the hub's bus or its HTTP API. The extension's stub documents them.
 *
 * Not here: `broadcast('channel', $message)`, because Laravel's helper of that name is there first,
 * and what needs a hub inside the process (`Realtime\start()`, `Realtime\serve()`).
 */

namespace {

    use Realtime\Laravel\Client\Runtime;

    if (!extension_loaded('realtime')) {
        function broadcastToUser(string|int $userId, mixed $message, string $as = 'message', array $options = []): void
        {
            Runtime::current()->broadcastToUser($userId, $message, $as, $options);
        }

        function getChannelUsers(string $channel, array $options = []): array
        {
            return Runtime::current()->channelUsers($channel);
        }

        function disconnectUser(string|int $userId, int $code = 4009, string $reason = '', array $options = []): int
        {
            return Runtime::current()->disconnectUser($userId, $code, $reason);
        }
    }
}

namespace Realtime {

    use Realtime\Laravel\Client\Runtime;

    if (!extension_loaded('realtime')) {
        class_alias(\Realtime\Laravel\Client\Receipt::class, Receipt::class);
        class_alias(\Realtime\Laravel\Client\Events::class, Events::class);

        /** @see Runtime::publish() */
        function publish(\Stringable|\BackedEnum|string|array $channel, mixed $message, string $as = 'message', array $options = []): Receipt|array
        {
            return Runtime::current()->publish($channel, $message, $as, $options);
        }

        function batch(callable $callback): mixed
        {
            return Runtime::current()->batch($callback);
        }

        function channels(): array
        {
            return Runtime::current()->channels();
        }

        function events(int $timeoutMs): Events
        {
            return Runtime::current()->events($timeoutMs);
        }

        function stats(): array
        {
            return Runtime::current()->stats();
        }

        function off(): void
        {
            Runtime::current()->off();
        }
    }
}

namespace Realtime\Testing {

    use Realtime\Laravel\Client\Runtime;

    if (!extension_loaded('realtime')) {
        function fake(): Fake
        {
            return Runtime::current()->fake();
        }
    }
}
