<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\{ConfigError, InvalidChannel, InvalidMessage, MessageTooLarge, RealtimeException};
use Realtime\Receipt;
use Tests\Client;

use function Tests\{check, contains, is_remote, same, test, throws, with_hub};

enum Topic: string
{
    case Orders = 'orders';
}

enum Level: int
{
    case High = 3;
}

enum Plain
{
    case Case;
}

final class Name implements Stringable
{
    public function __construct(private string $name) {}

    public function __toString(): string
    {
        return $this->name;
    }
}

final class Order implements JsonSerializable, Stringable
{
    public function jsonSerialize(): mixed
    {
        return ['id' => 7, 'url' => 'a/b', 'name' => 'Zoë'];
    }

    public function __toString(): string
    {
        return 'not this';
    }
}

final class Throwing implements JsonSerializable, Stringable
{
    public function jsonSerialize(): mixed
    {
        throw new DomainException('from jsonSerialize');
    }

    public function __toString(): string
    {
        throw new DomainException('from __toString');
    }
}

/** While it is converted it lets go of the string behind a reference, and others get the memory of that. */
class Replacing implements Stringable
{
    private array $others = [];

    public function __construct(private mixed &$place, private string $text = 'converted') {}

    public function __toString(): string
    {
        $length = strlen((string) $this->place);
        $this->place = null;
        for ($i = 0; $i < 50; $i++) {
            $this->others[] = str_repeat('z', $length);
        }
        return $this->text;
    }
}

final class ReplacingInJson extends Replacing implements JsonSerializable
{
    public function jsonSerialize(): mixed
    {
        return [(string) $this];
    }
}

/** A string that nobody else has. */
function own_string(string $letter): string
{
    return str_repeat($letter, 60);
}

/** What a subscriber of `c` receives for a message: the frame's text. */
function received(Client $client, mixed $message, array $options = []): string
{
    broadcast('c', $message, options: $options);
    do {
        [, $frame] = $client->read();
    } while (!str_contains($frame, '"type":"message"'));
    return $frame;
}

/** The JSON text of `data` in a frame. */
function data(string $frame): string
{
    preg_match('/"data":(.*),"offset":\d+\}$/s', $frame, $match);
    return $match[1] ?? "no data in $frame";
}

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    $client = Client::subscribed($hub->url, 'c');

    test('a string reaches clients as that string', function () use ($client) {
        foreach (['hello', '', '5', 'null', '{"a":1}', 'Zoë "quoted" / \\ ' . "\n\0", '🎈', str_repeat('x', 70000)] as $text) {
            same($text, json_decode(data(received($client, $text)), true, flags: JSON_THROW_ON_ERROR));
        }
    });

    test('other values are sent as json_encode gives them, readable and exact', function () use ($client) {
        $cases = [
            '{"a":[1,2.0,true,null],"path":"a/b","name":"Zoë"}' => ['a' => [1, 2.0, true, null], 'path' => 'a/b', 'name' => 'Zoë'],
            '[]' => [], '5' => 5, '5.0' => 5.0, '0.1' => 0.1, 'true' => true, 'null' => null,
            '{"id":7,"url":"a/b","name":"Zoë"}' => new Order(),
            '3' => Level::High,
        ];
        foreach ($cases as $json => $value) {
            same((string) $json, data(received($client, $value)));
        }
    });

    test('a backed enum is its value and a Stringable its string', function () use ($client) {
        same('"orders"', data(received($client, Topic::Orders)));
        same('"x/y"', data(received($client, new Name('x/y'))));
    });

    test('references are followed', function () use ($client) {
        $message = 'by reference';
        $other = &$message;
        same('"by reference"', data(received($client, $other)));
        $list = ['a'];
        $element = &$list[0];
        same('["a"]', data(received($client, $list)));
    });

    test('a channel behind a reference is what it was when the call began, whatever PHP code the call runs', function () use ($hub) {
        $client = Client::subscribed($hub->url, own_string('a'), own_string('z'));
        $calls = [
            'broadcast' => fn (array $channels, mixed $message) => broadcast($channels, $message),
            'publish' => fn (array $channels, mixed $message) => Realtime\publish($channels, $message),
            'batch' => fn (array $channels, mixed $message) => Realtime\batch(fn () => broadcast($channels, $message)),
        ];
        foreach ($calls as $name => $call) {
            foreach (['["converted"]', '"converted"', '"plain"'] as $expected) {
                $channel = own_string('a');
                $channels = [&$channel];
                $message = match ($expected) {
                    '["converted"]' => new ReplacingInJson($channel),
                    '"converted"' => new Replacing($channel),
                    '"plain"' => 'plain',
                };
                if ($message === 'plain') {
                    $channels[] = new Replacing($channel, 'another channel');
                }
                $call($channels, $message);
                $got = $client->next();
                same([null, own_string('a'), $expected], [$channel, $got['channel'], json_encode($got['data'])], "$name $expected");
            }
        }
    });

    test('an id behind a reference is what it was when the call began', function () {
        foreach (['broadcast', 'Realtime\publish'] as $function) {
            $id = own_string('i');
            $function("ids of $function", new Replacing($id), 'event', ['id' => &$id]);
            same([null, 1], [$id, Realtime\publish("ids of $function", 'x', options: ['id' => own_string('i')])->offset]);
        }
    });

    test('what cannot be a message is refused', function () {
        foreach ([new stdClass(), fn () => 1, Plain::Case, fopen('php://memory', 'r')] as $value) {
            throws(InvalidMessage::class, 'a message cannot be of type', fn () => broadcast('c', $value));
        }
    });

    test('invalid UTF-8 is an exception wherever text is meant', function () {
        foreach (["\xff", "ok\xc3", "\xed\xa0\x80"] as $bytes) {
            throws(InvalidMessage::class, 'not valid UTF-8', fn () => broadcast('c', $bytes));
            throws(InvalidMessage::class, 'not valid UTF-8', fn () => broadcast('c', new Name($bytes)));
            $e = throws(InvalidMessage::class, 'Malformed UTF-8', fn () => broadcast('c', [$bytes]));
            same(JsonException::class, $e->getPrevious()::class);
            throws(InvalidChannel::class, 'not valid UTF-8', fn () => broadcast($bytes, 'x'));
            throws(InvalidChannel::class, 'not valid UTF-8', fn () => broadcast([$bytes], 'x'));
            throws(InvalidMessage::class, 'not valid UTF-8', fn () => broadcast('c', 'x', $bytes));
            throws(InvalidMessage::class, 'not valid UTF-8', fn () => broadcast('c', 'x', options: ['id' => $bytes]));
            throws(InvalidMessage::class, 'valid UTF-8', fn () => broadcast('c', $bytes, options: ['json' => true]));
        }
    });

    test('what the value itself throws comes through unchanged', function () {
        throws(DomainException::class, 'from jsonSerialize', fn () => broadcast('c', new Throwing()));
        throws(DomainException::class, 'from __toString', fn () => broadcast(new Throwing(), 'x'));
        throws(InvalidMessage::class, 'Inf and NaN', fn () => broadcast('c', [NAN]));
    });

    test('exit() inside a conversion ends the script as it would elsewhere', function () {
        $code = <<<'PHP'
            final class Leaves implements JsonSerializable { function jsonSerialize(): mixed { echo 'bye'; exit(3); } }
            Realtime\start(['listen' => '127.0.0.1:0']);
            try { broadcast('a', new Leaves); } catch (Throwable $e) { echo 'caught'; } finally { echo 'finally'; }
            PHP;
        $process = Tests\php($code);
        same([3, 'bye'], [$process->wait(), $process->written()]);
    });

    test('json_last_error() is left alone', function () use ($client) {
        json_decode('{');
        received($client, ['a' => 1]);
        same(JSON_ERROR_SYNTAX, json_last_error());
    });

    test('json: true sends the value that the text denotes, and only if it is JSON', function () use ($client) {
        same('{ "a" : [1] }', data(received($client, '{ "a" : [1] }', ['json' => true])));
        same('1', data(received($client, new Name('1'), ['json' => true])));
        foreach (['', '{', '1 2', 'nul', "\"\x01\""] as $text) {
            throws(InvalidMessage::class, 'not valid JSON', fn () => broadcast('c', $text, options: ['json' => true]));
        }
        throws(InvalidMessage::class, 'json: true needs a string', fn () => broadcast('c', ['a'], options: ['json' => true]));
    });

    test('binary: true carries every byte', function () use ($client) {
        $bytes = '';
        for ($i = 0; $i < 256; $i++) {
            $bytes .= chr($i);
        }
        foreach ([$bytes, "\xff\xfe\n\0", ''] as $message) {
            broadcast('c', $message, 'frame', ['binary' => true]);
            do {
                [$opcode, $frame] = $client->read();
            } while ($opcode !== 2);
            [$head, $body] = explode("\n", $frame, 2);
            same($message, $body);
            $head = json_decode($head, true, flags: JSON_THROW_ON_ERROR);
            same(['c', 'frame'], [$head['channel'], $head['event']]);
        }
        throws(InvalidMessage::class, 'binary: true needs a string', fn () => broadcast('c', ['x'], options: ['binary' => true]));
        throws(InvalidMessage::class, 'exclude each other', fn () => broadcast('c', 'x', options: ['binary' => true, 'json' => true]));
    });

    test('channels may be strings, Stringables, backed enums, or a list of them', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'orders', 'a', '3');
        broadcast(Topic::Orders, 'enum');
        broadcast(new Name('a'), 'stringable');
        broadcast(['a', new Name('orders'), Level::High], 'list');
        $got = [];
        for ($i = 0; $i < 5; $i++) {
            $message = $client->next();
            $got[$message['channel']][] = $message['data'];
        }
        // The order is the channel's own: between channels there is none.
        ksort($got);
        same([3 => ['list'], 'a' => ['stringable', 'list'], 'orders' => ['enum', 'list']], $got);
    });

    test('a channel that breaks a rule is refused, and then no other of the list gets the message', function () use ($hub) {
        foreach (['', '#internal', "a\x01", str_repeat('x', 201)] as $channel) {
            throws(InvalidChannel::class, 'channel name', fn () => broadcast($channel, 'x'));
            throws(InvalidChannel::class, 'channel name', fn () => broadcast(['fine', $channel], 'x'));
        }
        throws(InvalidChannel::class, 'empty', fn () => broadcast([], 'x'));
        throws(InvalidChannel::class, 'of type int', fn () => broadcast(['a', 5], 'x'));
        throws(TypeError::class, 'broadcast(): Argument #1 ($event) must be a channel', fn () => broadcast(5, 'x'));
        throws(TypeError::class, 'stdClass given', fn () => broadcast(new stdClass(), 'x'));
        throws(TypeError::class, 'Realtime\publish(): Argument #1 ($channel)', fn () => Realtime\publish(null, 'x'));
        same(1, Realtime\publish('fine', 'x')->offset);
    });

    test('the event name is what clients see', function () use ($client) {
        contains('"event":"message"', received($client, 'x'));
        broadcast('c', 'x', 'order.shipped');
        same('order.shipped', $client->next()['event']);
        broadcast(event: 'c', message: 'named', as: 'named.event');
        same('named.event', $client->next()['event']);
        throws(InvalidMessage::class, 'event name', fn () => broadcast('c', 'x', ''));
        throws(InvalidMessage::class, 'event name', fn () => broadcast('c', 'x', 'pusher:x'));
    });

    test('except spares the connections that it names, whatever else stands there', function () use ($hub) {
        [$first, $second] = [Client::subscribed($hub->url, 'room'), Client::subscribed($hub->url, 'room')];
        $id = (new ReflectionProperty($first, 'socketId'))->getValue($first);
        $ignored = fn () => is_remote() ? 0 : Realtime\stats()['ignored_socket_ids'];
        $before = $ignored();
        broadcast('room', 1, options: ['except' => $id]);
        broadcast('room', 2, options: ['except' => [$id, null, 'nonsense', '1.2.3', 5, ['x'], '-1.5']]);
        broadcast('room', 3, options: ['except' => 'nonsense']);
        broadcast('room', 4, options: ['except' => null]);
        same([3, 4], [$first->next()['data'], $first->next()['data']]);
        same([1, 2, 3, 4], array_map(fn () => $second->next()['data'], range(1, 4)));
        same(is_remote() ? 0 : 6, $ignored() - $before);
    });

    test('a repeated id is accepted, answered as the first time, and not sent again', function () use ($client) {
        $first = Realtime\publish('c', 'once', options: ['id' => 'k1']);
        $again = Realtime\publish('c', 'once more', options: ['id' => 'k1']);
        same([$first->epoch, $first->offset], [$again->epoch, $again->offset]);
        broadcast('c', 'after');
        same(['once', 'after'], [$client->next()['data'], $client->next()['data']]);
        throws(InvalidMessage::class, 'id', fn () => Realtime\publish('c', 'x', options: ['id' => '']));
    });

    test('options are checked', function () {
        throws(InvalidMessage::class, 'unknown option `excpt`, did you mean `except`?', fn () => broadcast('c', 'x', options: ['excpt' => 1]));
        throws(InvalidMessage::class, 'unknown option `0`', fn () => broadcast('c', 'x', options: ['except']));
        throws(InvalidMessage::class, 'option `json` must be true or false', fn () => broadcast('c', 'x', options: ['json' => 1]));
        throws(InvalidMessage::class, 'option `id` must be a string', fn () => broadcast('c', 'x', options: ['id' => 1]));
        throws(InvalidMessage::class, 'option `ttl_ms` must be at least 1, 0 given', fn () => broadcast('c', 'x', options: ['ttl_ms' => 0]));
        throws(InvalidMessage::class, 'option `ttl_ms` must be a whole number', fn () => broadcast('c', 'x', options: ['ttl_ms' => '5']));
        throws(ConfigError::class, 'are in `default` (realtime.app)', fn () => broadcast('c', 'x', options: ['app' => 'shop']));
        throws(TypeError::class, 'must be of type array', fn () => (fn ($f) => $f('c', 'x', 'e', 'options'))('broadcast'));
        foreach ([['app' => 'default'], ['app' => ''], ['app' => null], ['history' => false], ['history' => true], ['id' => null], ['ttl_ms' => null], ['ttl_ms' => 1], ['json' => false, 'binary' => false]] as $options) {
            check(Realtime\publish('c', 'x', options: $options)->accepted, json_encode($options));
        }
    });

    test('a message that passes the limit is refused', function () {
        $limit = 256 << 10;
        $e = throws(MessageTooLarge::class, (string) $limit, fn () => broadcast('c', str_repeat('x', $limit + 1)));
        same(false, $e->isRetryable());
        broadcast('c', str_repeat('x', $limit));
    });

    test('publish() answers with a receipt, or one for each channel of a list', function () use ($hub) {
        [$one, $two] = [Client::subscribed($hub->url, 'r1'), Client::subscribed($hub->url, 'r1')];
        $receipt = Realtime\publish('r1', 'x');
        same(Receipt::class, $receipt::class);
        // Who is subscribed on other hosts Redis does not know.
        $matched = fn (int $count) => is_remote() ? 0 : $count;
        same([true, 1, $matched(2)], [$receipt->accepted, $receipt->offset, $receipt->matched]);
        check(preg_match('/^[0-9a-f]+$/', $receipt->epoch) === 1, $receipt->epoch);
        $receipts = Realtime\publish(['r1', 'r2'], 'x');
        same([[2, $matched(2)], [1, 0]], array_map(fn ($r) => [$r->offset, $r->matched], $receipts));
        same([1], array_map(fn ($r) => $r->offset, Realtime\publish(['r3'], 'x')));
        throws(Error::class, 'readonly', function () use ($receipt) {
            $receipt->offset = 5;
        });
        throws(Error::class, 'private', fn () => new Receipt());
    });

    is_remote() || test('channels() lists the channels that have subscribers', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'listed');
        Realtime\publish('not listed', 'x');
        $listed = array_values(array_filter(Realtime\channels(), fn ($channel) => $channel['name'] === 'listed'));
        same([['name' => 'listed', 'subscribers' => 1]], $listed);
        check(!in_array('not listed', array_column(Realtime\channels(), 'name'), true), 'nobody subscribed to the other');
    });

    test('messages of one caller arrive in their order', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'ordered');
        for ($i = 0; $i < 2000; $i++) {
            broadcast('ordered', $i);
        }
        for ($i = 0; $i < 2000; $i++) {
            same($i, $client->next()['data']);
        }
    });

    test('calls of every kind leave no PHP memory behind', function () use ($hub) {
        $quietly = function (callable $call): void {
            try {
                $call();
            } catch (Throwable) {
            }
        };
        $round = function () use ($quietly, $hub): void {
            broadcast('m', 'text');
            broadcast(new Name('m'), ['a' => 1, 'b' => str_repeat('x', 100)]);
            broadcast(['m', Topic::Orders], new Order(), 'event', ['except' => ['1.2', 'x'], 'id' => null]);
            Realtime\publish(['m', 'n'], new Name('stringable'));
            broadcastToUser(1, [1]);
            foreach (['disconnectUser' => 'nobody', 'getChannelUsers' => 'm', 'Realtime\history' => 'm'] as $function => $argument) {
                $quietly(fn () => $function($argument));
            }
            $quietly(fn () => Realtime\channels());
            $quietly(fn () => Realtime\stats());
            if ($hub instanceof Realtime\Hub) {
                Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2, 'channels' => []]);
                $hub->setUser('1.2', 'x', ['info' => str_repeat('x', 50)]);
            }
            foreach ([["\xff"], new stdClass(), new Throwing(), "\xff"] as $message) {
                $quietly(fn () => broadcast('m', $message));
            }
            $quietly(fn () => broadcast(['m', '#'], 'x'));
            $quietly(fn () => broadcast('m', 'x', options: ['excpt' => 1]));
            $quietly(fn () => broadcast(new stdClass()));
            $quietly(fn () => Realtime\start(['lissten' => str_repeat('x', 50)]));
            $fake = Realtime\Testing\fake();
            broadcast('m', ['kept' => str_repeat('x', 100)]);
            $fake->assertBroadcast('m', fn ($message) => true);
            $quietly(fn () => $fake->assertBroadcast('other'));
            $fake->recorded();
            $fake->restore();
        };
        for ($i = 0; $i < 20; $i++) {
            $round();
        }
        gc_collect_cycles();
        $before = memory_get_usage();
        for ($i = 0; $i < 500; $i++) {
            $round();
        }
        gc_collect_cycles();
        check(memory_get_usage() - $before < 500, 'grew by ' . memory_get_usage() - $before . ' bytes in 500 rounds');
    });

    test('wrong argument counts and types are PHP\'s own errors', function () {
        throws(ArgumentCountError::class, 'exactly 0', fn () => (fn ($f) => $f(1))('Realtime\channels'));
        throws(ArgumentCountError::class, 'broadcast() expects at most 4', fn () => (fn ($f) => $f('c', 'x', 'e', [], 5))('broadcast'));
        throws(ArgumentCountError::class, '($message) must be passed explicitly', fn () => broadcast(event: 'c', as: 'x'));
        throws(TypeError::class, 'Argument #3 ($as) must be of type string, array given', fn () => (fn ($f) => $f('c', 'x', []))('broadcast'));
    });
});

test('every exception extends RealtimeException, can be made in PHP, and knows whether to retry', function () {
    $retryable = ['Unavailable' => true, 'QueueFull' => true, 'Timeout' => true, 'InvalidChannel' => false, 'InvalidMessage' => false, 'MessageTooLarge' => false, 'ConfigError' => false, 'Unauthorized' => false];
    foreach ($retryable as $name => $expected) {
        $class = "Realtime\\Exception\\$name";
        $e = new $class('text', 5, new Exception('cause'));
        check($e instanceof RealtimeException && $e instanceof RuntimeException, $class);
        same(['text', 5, 'cause', $expected], [$e->getMessage(), $e->getCode(), $e->getPrevious()->getMessage(), $e->isRetryable()]);
    }
    $own = new class ('mine') extends Realtime\Exception\QueueFull {};
    same(true, $own->isRetryable());
});
