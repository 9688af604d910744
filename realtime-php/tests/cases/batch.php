<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\{InvalidChannel, InvalidMessage, MessageTooLarge};
use Tests\Client;

use function Realtime\batch;
use function Tests\{check, contains, is_remote, php, same, test, throws, with_hub};

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    /** What a subscriber got before the marker. */
    $until = function (Client $client, string $marker): array {
        $got = [];
        while (($message = $client->next())['data'] !== $marker) {
            $got[] = $message['data'];
        }
        return $got;
    };

    test('what the callback broadcasts is sent when it has returned, in order', function () use ($hub, $until) {
        $client = Client::subscribed($hub->url, 'a', 'b');
        $published = fn () => is_remote() ? 0 : Realtime\stats()['published'];
        $before = $published();
        $returned = batch(function () use ($published, $before) {
            broadcast('a', 1);
            broadcast('a', 'two');
            broadcast('a', ['three' => 3.0]);
            broadcast(['a', 'b'], 4);
            same($before, $published(), 'inside the callback');
            return 'value';
        });
        same('value', $returned);
        broadcast('a', 'end');
        $got = $until($client, 'end');
        // The order is the channel's own: the fourth of `b` may come anywhere.
        check(in_array(4, $got, true), 'the fourth came');
        unset($got[array_search(4, $got, true)]);
        same([1, 'two', ['three' => 3.0], 4], [...array_filter($got, fn ($data) => $data !== 4), 4]);
    });

    test('options and users are kept too', function () use ($hub) {
        [$first, $second] = [Client::subscribed($hub->url, 'o'), Client::subscribed($hub->url, 'o')];
        $hub->setUser($second->id(), 7);
        batch(function () use ($first) {
            broadcast('o', 1, 'named', ['except' => (new ReflectionProperty($first, 'socketId'))->getValue($first)]);
            broadcast('o', '{"a":1}', options: ['json' => true, 'id' => 'k']);
            broadcast('o', 'the same id', options: ['id' => 'k']);
            broadcastToUser(7, 'for 7');
            broadcast('o', 'last');
        });
        same([['a' => 1], 'last'], [$first->next()['data'], $first->next()['data']]);
        $got = array_map(fn () => $second->next(), range(1, 4));
        same(['named', 'message'], [$got[0]['event'], $got[1]['event']]);
        $data = array_column($got, 'data');
        sort($data);
        same(4, count($data));
        foreach ([1, ['a' => 1], 'for 7', 'last'] as $expected) {
            check(in_array($expected, $data, true), json_encode($expected));
        }
    });

    test('binary bodies go through a batch unchanged', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'bytes');
        batch(function () {
            broadcast('bytes', "\xff\0\xfe", options: ['binary' => true]);
            broadcast('bytes', "\n", options: ['binary' => true]);
        });
        $bodies = [];
        while (count($bodies) < 2) {
            [$opcode, $frame] = $client->read();
            if ($opcode === 2) {
                $bodies[] = explode("\n", $frame, 2)[1];
            }
        }
        same(["\xff\0\xfe", "\n"], $bodies);
    });

    test('nothing is sent when the callback throws', function () use ($hub) {
        $client = Client::subscribed($hub->url, 't');
        throws(DomainException::class, 'stop', fn () => batch(function () {
            broadcast('t', 'lost');
            throw new DomainException('stop');
        }));
        broadcast('t', 'after');
        same('after', $client->next()['data']);
    });

    test('a batch inside a batch joins it; when it throws, only its own are dropped', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'n');
        batch(function () {
            broadcast('n', 1);
            batch(fn () => broadcast('n', 2));
            try {
                batch(function () {
                    broadcast('n', 'lost');
                    throw new DomainException();
                });
            } catch (DomainException) {
            }
            broadcast('n', 3);
        });
        same([1, 2, 3], [$client->next()['data'], $client->next()['data'], $client->next()['data']]);
        throws(DomainException::class, '', fn () => batch(function () {
            batch(fn () => broadcast('n', 'lost with the outer one'));
            throw new DomainException();
        }));
        broadcast('n', 4);
        same(4, $client->next()['data']);
    });

    test('publish() throws inside, because there is no receipt yet', function () {
        throws(Error::class, 'Realtime\publish() has no receipt to give inside Realtime\batch()', fn () => batch(fn () => Realtime\publish('a', 'x')));
        check(Realtime\publish('a', 'x')->accepted, 'afterwards it works');
    });

    test('mistakes are thrown where they are made, and what was right is still sent', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'm');
        batch(function () {
            broadcast('m', 1);
            throws(InvalidChannel::class, 'channel name', fn () => broadcast('#m', 'x'));
            throws(InvalidMessage::class, 'event name', fn () => broadcast('m', 'x', ''));
            throws(InvalidMessage::class, 'id', fn () => broadcast('m', 'x', options: ['id' => '']));
            throws(InvalidMessage::class, 'user id', fn () => broadcastToUser('', 'x'));
            throws(MessageTooLarge::class, 'limit', fn () => broadcast('m', str_repeat('x', (256 << 10) + 1)));
            broadcast('m', 2);
        });
        same([1, 2], [$client->next()['data'], $client->next()['data']]);
    });

    test('ten thousand messages of a batch arrive in their order', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'many');
        batch(function () {
            for ($i = 0; $i < 10_000; $i++) {
                broadcast('many', $i);
            }
        });
        for ($i = 0; $i < 10_000; $i++) {
            same($i, $client->next()['data']);
        }
    });

    test('a batch has an end', function () {
        $text = str_repeat('x', 256 << 10);
        $log = getenv('TEST_DIRECTORY') . '/batch.log';
        ini_set('error_log', $log);
        throws(DomainException::class, '', fn () => batch(function () use ($text) {
            for ($i = 0; $i < 300; $i++) {
                broadcast('big', $text);
            }
            throw new DomainException();
        }));
        contains('broadcast() failed: a batch holds at most 67108864 bytes', file_get_contents($log));
        check(is_remote() || Realtime\stats()['failed_calls'] > 0, 'such calls are counted');
    });

    test('an empty batch, and one that returns nothing, are fine', function () {
        same(null, batch(function () {}));
        throws(TypeError::class, 'Realtime\batch(): Argument #1 ($callback) must be a valid callback', fn () => (fn ($f) => $f('no such function'))('Realtime\batch'));
    });

    test('a fake sees what would have been sent', function () {
        $fake = Realtime\Testing\fake();
        batch(fn () => broadcast('f', 'kept'));
        throws(DomainException::class, '', fn () => batch(function () {
            broadcast('f', 'dropped');
            throw new DomainException();
        }));
        same(['kept'], array_column($fake->recorded('f'), 'message'));
        $fake->restore();
    });

    test('batches leave no PHP memory behind', function () {
        $round = function (): void {
            batch(fn () => broadcast('x', ['a' => str_repeat('x', 100)], options: ['id' => null]));
            try {
                batch(fn () => broadcast('#', 'x'));
            } catch (InvalidChannel) {
            }
        };
        array_map($round, range(1, 20));
        $before = memory_get_usage();
        for ($i = 0; $i < 500; $i++) {
            $round();
        }
        check(memory_get_usage() - $before < 500, 'grew by ' . memory_get_usage() - $before . ' bytes');
    });
});

test('exit() inside the callback sends nothing and ends the script', function () {
    $code = <<<'PHP'
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        register_shutdown_function(function () {
            broadcast('e', 'from the end');
            echo Realtime\stats()['published'];
        });
        Realtime\batch(function () { broadcast('e', 'lost'); exit(3); });
        PHP;
    $process = php($code);
    same([3, '1'], [$process->wait(), $process->written()]);
});
