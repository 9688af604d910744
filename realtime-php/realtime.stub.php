<?php

/**
 * Signatures and documentation of the extension "realtime", for editors and static analysis.
 * Nothing loads this file at run time; a test compares it with the extension by reflection.
 *
 * `UNKNOWN` marks, as in PHP's own stubs, a parameter that may be left out although it has no
 * default that could be written down.
 */

namespace {

    /**
     * Sends a message to every connection that is subscribed to a channel.
     *
     * In the process that started the hub this is a function call into it; in any other process of
     * the host, a php-fpm worker say, one write to the hub's bus socket. It never waits for a
     * subscriber, and returns when the hub, or the socket's buffer, has the message.
     *
     * ```php
     * broadcast('orders', ['id' => 7, 'state' => 'shipped']);
     * broadcast(new PrivateChannel('orders.7'), $order);             // any Stringable names a channel
     * broadcast(['orders', 'audit'], 'shipped', as: 'order.shipped');
     * broadcast('camera', $jpeg, options: ['binary' => true]);
     * broadcast('room', $text, options: ['except' => $request->header('X-Socket-ID')]);
     * ```
     *
     * **With one argument, or none, this is Laravel's helper** of the same name, answered by the
     * application's container: `broadcast(new OrderShipped($order))->toOthers()`.
     *
     * @param string|\Stringable|\BackedEnum|list<string|\Stringable|\BackedEnum>|object|null $event
     *   The channel or channels, when a message is given; else Laravel's event.
     * @param mixed $message A string reaches clients as that string. Arrays, scalars, null and
     *   `JsonSerializable` are sent as `json_encode()` gives them, with slashes and Unicode
     *   unescaped and zero fractions kept. A backed enum is its value, a `Stringable` its string.
     * @param string $as The event's name that clients see.
     * @param array{
     *   except?: string|list<string|null>|null,
     *   id?: string|null,
     *   json?: bool,
     *   binary?: bool,
     *   history?: bool,
     *   ttl_ms?: int|null,
     *   app?: string|null,
     * } $options
     *   `except`: socket ids that do not get it; what is not a socket id is ignored and counted.
     *   `id`: idempotency key, a repeat on the same channel within five minutes is not sent again.
     *   `json`: the string is JSON already and is sent as the value it denotes.
     *   `binary`: the string is bytes, sent in binary frames.
     *   `history`: false keeps it out of the channel's history.
     *   `ttl_ms`: milliseconds after which it leaves the channel's history, where that is sooner than
     *   the channel's policy says; at least 1.
     *   `app`: the app that `realtime.app` names; another one is refused.
     *
     * @return mixed null; with one argument Laravel's `PendingBroadcast`.
     *
     * @throws \Realtime\Exception\InvalidChannel  A channel name breaks a rule: 1–200 bytes of
     *   UTF-8, no control characters, no `#` at the start.
     * @throws \Realtime\Exception\InvalidMessage  The message, an option or the event's name cannot
     *   be sent.
     * @throws \Realtime\Exception\MessageTooLarge It passes `limits.publication_bytes`.
     * @throws \Realtime\Exception\RealtimeException With `realtime.on_error = throw` also what is
     *   otherwise logged: `Unavailable`, `QueueFull`, `Timeout`.
     * @throws \TypeError One argument, and no Laravel application.
     */
    function broadcast(mixed $event = null, mixed $message = UNKNOWN, string $as = 'message', array $options = []): mixed {}

    /**
     * Sends a message to every connection of one user, whatever channels they have.
     *
     * Connections belong to a user once the host said so, see {@see \Realtime\Hub::setUser()}.
     *
     * @param string|int $userId 1–128 bytes; 42 and "42" are the same user.
     * @param mixed $message See {@see broadcast()}.
     * @param string $as The event's name that clients see.
     * @param array{except?: string|list<string|null>|null, json?: bool, binary?: bool, app?: string|null} $options
     *   See {@see broadcast()}.
     *
     * @throws \Realtime\Exception\InvalidMessage
     * @throws \Realtime\Exception\MessageTooLarge
     * @throws \Realtime\Exception\RealtimeException See {@see broadcast()}.
     */
    function broadcastToUser(string|int $userId, mixed $message, string $as = 'message', array $options = []): void {}

    /**
     * The users that are subscribed to a channel, each once, on all hubs that share a Redis.
     *
     * On a host without a hub (`realtime.mode = remote`) the hubs of other hosts are asked, through that Redis. What
     * a hub that does not answer within 600 ms has is missing, and PHP's error log says so.
     *
     * @param array{app?: string|null} $options
     *
     * @return list<array{id: string, info: mixed, connections: int}> `info` is what
     *   {@see \Realtime\Hub::setUser()} was given, or null. Empty, and logged, when there is no hub.
     *
     * @throws \Realtime\Exception\InvalidChannel
     * @throws \Realtime\Exception\RealtimeException See {@see broadcast()}.
     */
    function getChannelUsers(string $channel, array $options = []): array {}

    /**
     * Closes every connection of a user, on all hubs that share a Redis; from a host without a hub
     * (`realtime.mode = remote`) too, see {@see getChannelUsers()}.
     *
     * @param int $code WebSocket close code, 1000 or 3000–4999. Clients that follow Pusher's ranges
     *   stay away after 40xx, come back later after 41xx and at once after 42xx.
     * @param string $reason For people, at most 123 bytes.
     * @param array{app?: string|null, ban_ms?: int|null} $options `ban_ms`: the user is kept out for so many
     *   milliseconds from now, whatever credential comes.
     *
     * @return int How many connections were closed.
     *
     * @throws \ValueError The code or the reason cannot be sent.
     * @throws \Realtime\Exception\Unauthorized Over the bus, from another user than the hub's own or
     *   root.
     * @throws \Realtime\Exception\RealtimeException See {@see broadcast()}.
     */
    function disconnectUser(string|int $userId, int $code = 4009, string $reason = '', array $options = []): int {}
}

namespace Realtime {

    /**
     * Sends like {@see \broadcast()}, answers with a receipt, and always throws when it fails.
     *
     * @param string|\Stringable|\BackedEnum|list<string|\Stringable|\BackedEnum> $channel
     * @param mixed $message See {@see \broadcast()}.
     * @param string $as The event's name that clients see.
     * @param array{
     *   except?: string|list<string|null>|null,
     *   id?: string|null,
     *   json?: bool,
     *   binary?: bool,
     *   history?: bool,
     *   ttl_ms?: int|null,
     *   app?: string|null,
     * } $options See {@see \broadcast()}.
     *
     * @return Receipt|list<Receipt> One for a channel; for a list of channels one each, in its order.
     *   The call fails with the first of them; those behind it may be out all the same.
     *
     * @throws Exception\Unavailable     No hub runs in this process, and none answers on the bus.
     * @throws Exception\QueueFull       Subscribers are slower than the publisher; retry later.
     * @throws Exception\Timeout
     * @throws Exception\InvalidChannel
     * @throws Exception\InvalidMessage
     * @throws Exception\MessageTooLarge
     * @throws \Error Inside {@see batch()}, where there is no receipt yet.
     */
    function publish(\Stringable|\BackedEnum|string|array $channel, mixed $message, string $as = 'message', array $options = []): Receipt|array {}

    /**
     * Sends what the callback broadcasts together, when it has returned; nothing of it when it
     * throws.
     *
     * Over the bus a batch costs one write instead of one a message. A batch inside a batch joins
     * it. Mistakes (a channel's name, a message, an option) are thrown where they are made. The
     * callback may collect 64 MiB.
     *
     * ```php
     * Realtime\batch(function () use ($orders) {
     *     foreach ($orders as $order) {
     *         broadcast("orders.{$order->id}", $order);
     *     }
     * });
     * ```
     *
     * @template T
     * @param callable(): T $callback
     *
     * @return T What the callback returned.
     *
     * @throws Exception\RealtimeException With `realtime.on_error = throw`, when the messages cannot
     *   be sent; see {@see \broadcast()}.
     */
    function batch(callable $callback): mixed {}

    /**
     * What is kept of a channel whose policy has `history` or `last_value`, oldest first.
     *
     * ```php
     * $page = Realtime\history('orders', limit: 20, reverse: true);
     * foreach ($page['messages'] as $message) {
     *     echo $message['offset'], ' ', $message['event'], "\n";
     * }
     * ```
     *
     * @param int $limit At most so many messages, 1 to 1,000. An answer also ends when it grows large.
     * @param array{epoch?: string, offset?: int} $since Only what followed this position.
     * @param bool $reverse The newest first.
     *
     * @return array{epoch: string, offset: int, complete: bool, more: bool, messages: list<array{event: string, data?: mixed, base64?: string, offset: int, user_id?: string}>}
     *   Where the channel stands; whether nothing kept is missing since `$since`; whether there is
     *   more; what is kept (`base64` stands in place of `data` for what was published as binary).
     *
     * @throws Exception\Unavailable    No hub runs in this process, and none answers on the bus.
     * @throws Exception\InvalidChannel Its name is not valid, or nothing is kept of it.
     * @throws Exception\Timeout
     */
    function history(string $channel, int $limit = 100, array $since = [], bool $reverse = false): array {}

    /**
     * The channels of the hub that have subscribers.
     *
     * @return list<array{name: string, subscribers: int}>
     *
     * @throws Exception\Unavailable No hub runs in this process, and none answers on the bus.
     */
    function channels(): array {}

    /**
     * Who is on a channel, asked of the hub whenever it is used; see {@see \getChannelUsers()}.
     *
     * ```php
     * $room = Realtime\presence('room.7');
     * echo count($room), $room->has(42) ? ' with 42' : ' without 42';
     * ```
     *
     * @param array{app?: string|null} $options
     *
     * @throws Exception\InvalidChannel
     */
    function presence(string $channel, array $options = []): Presence {}

    /**
     * What happened to connections and channels, of what `hooks.events` names.
     *
     * Each event goes to one reader. Asking for the next one acknowledges it; who stops in between
     * leaves it to somebody else, so that it may come twice (`attempt` is above 1 then). Ends when
     * nothing has happened for the timeout.
     *
     * ```php
     * while (true) {
     *     foreach (Realtime\events(5000) as $event) {
     *         match ($event['kind']) {
     *             'joined' => markOnline($event['user_id']),
     *             'left' => markOffline($event['user_id']),
     *         };
     *     }
     * }
     * ```
     *
     * @param int $timeoutMs How long to wait for an event; 0 takes what is there.
     *
     * @throws Exception\ConfigError  `hooks.events` of the hub is empty.
     * @throws Exception\Unavailable  No hub runs in this process, and none answers on the bus.
     * @throws Exception\Unauthorized Another user than the hub's own.
     */
    function events(int $timeoutMs): Events {}

    /**
     * Counters of the hub and of this process.
     *
     * @return array<string, int|float|array<mixed>> `failed_calls` counts calls of the global
     *   functions that were logged instead of thrown, `ignored_socket_ids` what stood in `except`
     *   and is not a socket id; the others come from the hub.
     *
     * @throws Exception\Unavailable No hub runs in this process, and none answers on the bus.
     */
    function stats(): array {}

    /**
     * Starts the hub inside this process and returns at once. Other processes of the host reach it
     * through its bus socket.
     *
     * For processes that live long and share one address space: a command line daemon, a worker, a
     * FrankenPHP application. A second call with the same configuration gives the same hub.
     *
     * ```php
     * $hub = Realtime\start(['listen' => '127.0.0.1:0']);
     * echo "listening on {$hub->url}\n";
     * ```
     *
     * @param array<string, mixed> $config The strongest layer over environment, php.ini and the
     *   TOML file, with the same names and nesting: `['limits' => ['max_connections' => 500]]`.
     *
     * @throws Exception\ConfigError A setting is unknown or wrong, another configuration runs
     *   already, another hub serves the bus socket (`['socket' => '']` does without one),
     *   `realtime.mode` forbids it, or it is `auto` under php-fpm or another server that spreads
     *   requests over processes.
     * @throws Exception\Unavailable The port is in use.
     */
    function start(array $config = []): Hub {}

    /**
     * Starts the hub, blocks until SIGTERM or SIGINT, then closes all connections and returns.
     *
     * A hub that runs already is taken over when `$config` is empty. pcntl is not needed. Only for
     * the command line.
     *
     * @param array<string, mixed> $config See {@see start()}.
     *
     * @return int An exit status: 0 when everything ended within `drain_timeout_ms`, else 1.
     *
     * @throws Exception\ConfigError
     * @throws Exception\Unavailable
     */
    function serve(array $config = []): int {}

    /**
     * Makes every call of this request do nothing but check its arguments. Cannot be undone within
     * the request.
     */
    function off(): void {}

    /** A handle of the hub that runs in this process. */
    final class Hub
    {
        private readonly int $id;

        /** The port that it listens on, also when it was configured as 0. */
        public readonly int $port;

        /** Where native clients connect: `ws://127.0.0.1:8080/ws`. */
        public readonly string $url;

        private function __construct() {}

        /**
         * Closes all connections with 1001 and stops.
         *
         * @param int|null $timeoutMs How long clients may take; null is `drain_timeout_ms`.
         *
         * @return bool Whether everything ended in time. Also true when this hub does not run (any
         *   more) in this process.
         */
        public function stop(?int $timeoutMs = null): bool {}

        /** Whether this hub runs in this process; false in a forked child. */
        public function isRunning(): bool {}

        /**
         * Says which user a connection belongs to, from now on.
         *
         * @param string $socketId The `socket_id` that the client got in `connected`.
         * @param string|int|null $userId 1–128 bytes; null makes the connection anonymous again.
         * @param mixed $info What others may know of the user; encoded as JSON.
         *
         * @return bool False when there is no such connection.
         *
         * @throws \ValueError The user id cannot be used.
         * @throws Exception\Unavailable This hub has been stopped.
         */
        public function setUser(string $socketId, string|int|null $userId, mixed $info = null): bool {}
    }

    /** What became of a publication. */
    final class Receipt
    {
        /** False only while `realtime.mode` is off. */
        public readonly bool $accepted;

        /** Which count `offset` belongs to; another one after a restart. */
        public readonly string $epoch;

        /** Its number in the channel's order, from 1; 0 where `conflate_ms` holds it until its window ends. */
        public readonly int $offset;

        /** Subscriptions on this node to which it was queued; 0 where it went straight to Redis, which does not know them. */
        public readonly int $matched;

        private function __construct() {}
    }
}

namespace Realtime {

    /** Who is on a channel; see {@see presence()}. `count($presence)` is {@see Presence::count()}. */
    final class Presence implements \Countable
    {
        public readonly string $channel;

        private function __construct() {}

        /**
         * How many users there are. The hub does not look at each of them where the channel shows its users.
         *
         * @throws Exception\Unavailable
         */
        public function count(): int {}

        /**
         * The users, by id; see {@see \getChannelUsers()}, which logs where this throws.
         *
         * @return list<array{id: string, info: mixed, connections: int}>
         *
         * @throws Exception\Unavailable
         */
        public function users(): array {}

        /**
         * Whether a user is there.
         *
         * @throws Exception\Unavailable
         */
        public function has(string|int $userId): bool {}
    }

    /**
     * Events for a worker; see {@see events()}.
     *
     * @implements \Iterator<int, array{
     *   kind: string, at_ms: int, number: int, attempt: int, dropped: int, app?: string, connection?: string,
     *   channel?: string, user_id?: string, user_info?: mixed, event?: string, data?: mixed, reason?: string,
     * }>
     */
    final class Events implements \Iterator
    {
        private readonly int $timeoutMs;

        private int $number;

        private mixed $event;

        private function __construct() {}

        /** Leaves the event that was not acknowledged to others. */
        public function __destruct() {}

        /** The event. */
        public function current(): mixed {}

        /**
         * Acknowledges the event and takes no other: for a worker that is about to end.
         *
         * @throws Exception\Unavailable
         */
        public function done(): void {}

        /** Its number, by which a repeat is told. */
        public function key(): mixed {}

        /** Acknowledges the event and waits for the next one. */
        public function next(): void {}

        /** Waits for the first event. */
        public function rewind(): void {}

        /** Whether there is an event; false when none came in time. */
        public function valid(): bool {}
    }

    /**
     * Handlers for connections, run on this thread: what a program of Ratchet or Swoole is made of.
     *
     * Works where the hub is in this process, and on the hub behind the bus (its own user only).
     * Several programs share a hub's connections; each connection is one program's.
     *
     * ```php
     * $server = new Realtime\Server();
     * $server->on('connect', fn (Realtime\Connection $c) => isset($c->query['name']));
     * $server->on('message', fn (Realtime\Connection $c, string $event, mixed $data) => ['echo' => $data]);
     * $server->run();
     * ```
     */
    final class Server
    {
        private int $id;

        /** A server without handlers. It looks for a hub when it is first used. */
        public function __construct() {}

        /** Leaves the connections to others. What this server decided is refused until another does. */
        public function __destruct() {}

        /**
         * Sets the handler of an event, before the server runs.
         *
         * | event | handler | return value |
         * | --- | --- | --- |
         * | `connect` | `fn (Connection $c)` | false refuses the connection |
         * | `subscribe` | `fn (Connection $c, string $channel)` | false refuses the subscription |
         * | `message` | `fn (Connection $c, string $event, mixed $data)` | the answer, where the client gave an `id`; false refuses, null says nothing |
         * | `unsubscribe` | `fn (Connection $c, string $channel)` | |
         * | `disconnect` | `fn (Connection $c, string $reason)` | |
         *
         * Connections and subscriptions wait for their handler, for `hooks.timeout_ms` (2 s) at most;
         * no answer is a refusal, and so is an exception, which is logged.
         */
        public function on(string $event, callable $handler): Server {}

        /**
         * Handles what has come, waiting for it at most this long; for programs with a loop of their own.
         *
         * @return int How many events were handled.
         *
         * @throws Exception\Unavailable  There is no hub, or it has gone; the next call looks for one.
         * @throws Exception\Unauthorized Another user than the hub's own.
         */
        public function poll(int $timeoutMs = 0): int {}

        /**
         * Handles events until TERM or INT, then stops the hub of this process, if there is one. Looks
         * for the hub of another process again when it restarts. Only on the command line.
         *
         * @return int 0, or 1 when not everything had ended in time.
         *
         * @throws Exception\Unavailable There is no hub at the start.
         */
        public function run(): int {}

        /**
         * A stream that is readable when {@see poll()} has something to do, for `stream_select()` and
         * loops like ReactPHP's. It stays the same when the hub restarts, and must not be read from.
         *
         * @return resource
         *
         * @throws Exception\Unavailable
         */
        public function stream(): mixed {}

        /**
         * Sends a message to one connection, whichever program has it. Nothing happens where there is none.
         *
         * @param array{json?: bool, binary?: bool} $options See {@see \broadcast()}.
         *
         * @throws Exception\InvalidMessage
         * @throws Exception\Unavailable
         */
        public function send(string $socketId, mixed $message, string $as = 'message', array $options = []): void {}
    }

    /** A client's connection, as handlers of a {@see Server} get it. */
    final class Connection
    {
        /** The socket id. */
        public readonly string $id;

        public readonly ?string $userId;

        /** Path of the request; empty for a connection that another program had before. */
        public readonly string $path;

        /** @var array<string, string> Query of the request, decoded. */
        public readonly array $query;

        /** Whatever the program wants to keep with the connection. */
        public mixed $data = null;

        private readonly int $server;

        private readonly int $shard;

        private function __construct() {}

        /**
         * Sends a message to this connection alone.
         *
         * @param array{json?: bool, binary?: bool} $options See {@see \broadcast()}.
         *
         * @throws Exception\InvalidMessage
         * @throws Exception\MessageTooLarge
         * @throws Exception\Unavailable
         */
        public function send(mixed $message, string $as = 'message', array $options = []): void {}

        /**
         * Subscribes the connection to a channel, whatever the channel's `access` says.
         *
         * @return bool False: the channel is full (`max_members`), or the connection has gone.
         *
         * @throws Exception\InvalidChannel
         * @throws Exception\Unavailable
         */
        public function join(string $channel): bool {}

        /**
         * Ends a subscription.
         *
         * @return bool False: there was none.
         *
         * @throws Exception\InvalidChannel
         * @throws Exception\Unavailable
         */
        public function leave(string $channel): bool {}

        /**
         * Closes the connection.
         *
         * @param int $code 1000, or 3000–4999.
         * @param string $reason At most 123 bytes.
         *
         * @throws Exception\Unavailable
         */
        public function close(int $code = 1000, string $reason = ''): void {}
    }
}

namespace Realtime\Testing {

    /**
     * Records what this request would send, instead of sending it, until
     * {@see Fake::restore()} or the request's end.
     *
     * ```php
     * $realtime = Realtime\Testing\fake();
     * shipOrder(7);
     * $realtime->assertBroadcast('orders.7', fn ($message, $as) => $as === 'shipped');
     * ```
     */
    function fake(): Fake {}

    /** What was recorded, and assertions on it. In PHPUnit they count as PHPUnit's own. */
    final class Fake
    {
        private array $broadcasts = [];

        private array $disconnected = [];

        private function __construct() {}

        /**
         * What was recorded, oldest first; one entry a channel.
         *
         * @return list<array{channel: ?string, userId: ?string, message: mixed, as: string, options: array}>
         */
        public function recorded(?string $channel = null): array {}

        /**
         * Something was broadcast on the channel.
         *
         * @param (callable(mixed $message, string $as, array $options): bool)|null $callback Counts
         *   only messages for which it returns true.
         */
        public function assertBroadcast(string $channel, ?callable $callback = null): void {}

        /**
         * Nothing was broadcast on the channel.
         *
         * @param (callable(mixed $message, string $as, array $options): bool)|null $callback
         */
        public function assertNotBroadcast(string $channel, ?callable $callback = null): void {}

        /** Exactly so many messages were broadcast on the channel. */
        public function assertBroadcastTimes(string $channel, int $times): void {}

        /**
         * Something was sent to the user.
         *
         * @param (callable(mixed $message, string $as, array $options): bool)|null $callback
         */
        public function assertBroadcastToUser(string|int $userId, ?callable $callback = null): void {}

        /** Nothing was broadcast at all. */
        public function assertNothingBroadcast(): void {}

        /** `disconnectUser()` was called for the user. */
        public function assertDisconnected(string|int $userId): void {}

        /** Lets calls go to the hub again. */
        public function restore(): void {}
    }

    /** An assertion of {@see Fake} did not hold, and PHPUnit is not loaded. */
    class AssertionFailed extends \AssertionError {}
}

namespace Realtime\Exception {

    /** What every exception of the extension extends. */
    class RealtimeException extends \RuntimeException
    {
        /** Whether the same call may succeed later. */
        public function isRetryable(): bool {}
    }

    /** No hub can take the call now. */
    class Unavailable extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** A channel name breaks a rule. */
    class InvalidChannel extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** A message, an option or an event's name cannot be sent. */
    class InvalidMessage extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** A message passes the limit. */
    class MessageTooLarge extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** Subscribers are slower than the publisher. */
    class QueueFull extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** No answer in time. */
    class Timeout extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** A setting is unknown, wrong, or contradicts what runs already. */
    class ConfigError extends RealtimeException
    {
        public function isRetryable(): bool {}
    }

    /** The hub does not let this process do that. */
    class Unauthorized extends RealtimeException
    {
        public function isRetryable(): bool {}
    }
}
