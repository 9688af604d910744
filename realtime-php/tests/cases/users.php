<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\{InvalidChannel, InvalidMessage, Unavailable};
use Tests\Client;

use function Tests\{check, eventually, same, test, throws, with_hub};

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    $connect = function (string|int|null $user, mixed $info = null, string ...$channels) use ($hub): Client {
        $client = new Client($hub->url);
        check($hub->setUser($client->id(), $user, $info), 'the connection is known');
        foreach ($channels as $channel) {
            $client->send(['action' => 'subscribe', 'channel' => $channel]);
            $client->next('subscribed');
        }
        return $client;
    };

    test('broadcastToUser() reaches every connection of the user and no other', function () use ($connect) {
        [$one, $two, $other] = [$connect(42), $connect('42'), $connect(43)];
        broadcastToUser(42, ['hello' => 'Zoë'], 'greeting');
        broadcastToUser('43', 'for 43');
        foreach ([$one, $two] as $client) {
            $message = $client->next();
            same(['greeting', ['hello' => 'Zoë']], [$message['event'], $message['data']]);
        }
        same('for 43', $other->next()['data']);
    });

    test('disconnectUser() with ban_ms closes the connections; the option is checked', function () use ($connect) {
        $client = $connect('banned');
        same(1, disconnectUser('banned', 4009, 'out', ['ban_ms' => 60_000]));
        same(4009, $client->closeCode());
        throws(InvalidMessage::class, 'must not be negative', fn () => disconnectUser('banned', options: ['ban_ms' => -1]));
        throws(InvalidMessage::class, 'must be a whole number', fn () => disconnectUser('banned', options: ['ban_ms' => '5']));
        throws(InvalidMessage::class, 'did you mean `ban_ms`', fn () => disconnectUser('banned', options: ['ban' => 5]));
    });

    test('except spares one of the user\'s connections', function () use ($connect) {
        [$one, $two] = [$connect('e'), $connect('e')];
        broadcastToUser('e', 1, options: ['except' => $one->id()]);
        broadcastToUser('e', 2);
        same(2, $one->next()['data']);
        same([1, 2], [$two->next()['data'], $two->next()['data']]);
    });

    test('getChannelUsers() gives each user once, with what is known of him', function () use ($connect, $hub) {
        $clients = [$connect(1, ['name' => 'Ada', 'tags' => ['x']], 'room'), $connect(1, ['name' => 'Ada', 'tags' => ['x']], 'room'), $connect('b', null, 'room'), Client::subscribed($hub->url, 'room')];
        $users = getChannelUsers('room');
        usort($users, fn ($a, $b) => $a['id'] <=> $b['id']);
        same([['id' => '1', 'info' => ['name' => 'Ada', 'tags' => ['x']], 'connections' => 2], ['id' => 'b', 'info' => null, 'connections' => 1]], $users);
        same([], getChannelUsers('nobody'));
        unset($clients);
    });

    test('a connection may become another user, or nobody', function () use ($connect, $hub) {
        $client = $connect('before', null, 'switch');
        check($hub->setUser($client->id(), 'after'), 'known');
        same(['after'], array_column(getChannelUsers('switch'), 'id'));
        broadcastToUser('before', 'lost');
        broadcastToUser('after', 'found');
        same('found', $client->next()['data']);
        check($hub->setUser($client->id(), null), 'known');
        same([], getChannelUsers('switch'));
    });

    test('setUser() says when there is no such connection', function () use ($hub) {
        same(false, $hub->setUser('1.2', 'x'));
        same(false, $hub->setUser('nonsense', 'x'));
        throws(ValueError::class, 'user id', fn () => $hub->setUser('1.2', ''));
        throws(TypeError::class, 'string|int', fn () => $hub->setUser('1.2', [1]));
    });

    test('disconnectUser() closes the user\'s connections with the code', function () use ($connect) {
        [$one, $two, $other] = [$connect('gone'), $connect('gone'), $connect('stays')];
        same(2, disconnectUser('gone'));
        same([4009, 4009], [$one->closeCode(), $two->closeCode()]);
        same(0, disconnectUser('nobody'));
        same(1, disconnectUser('stays', 3000, 'see you'));
        same(3000, $other->closeCode());
    });

    test('arguments are checked', function () {
        foreach ([0, 999, 1001, 2999, 5000, -1, 70000] as $code) {
            throws(ValueError::class, 'Argument #2 ($code)', fn () => disconnectUser('x', $code));
        }
        throws(ValueError::class, 'Argument #3 ($reason)', fn () => disconnectUser('x', 1000, str_repeat('x', 124)));
        throws(ValueError::class, 'Argument #3 ($reason)', fn () => disconnectUser('x', 1000, "\xff"));
        throws(InvalidMessage::class, 'user id', fn () => broadcastToUser('', 'x'));
        throws(InvalidMessage::class, 'user id', fn () => broadcastToUser(str_repeat('x', 129), 'x'));
        throws(InvalidMessage::class, 'UTF-8', fn () => broadcastToUser("\xff", 'x'));
        throws(InvalidMessage::class, 'unknown option `id`', fn () => broadcastToUser('x', 'x', options: ['id' => 'k']));
        throws(TypeError::class, 'must be of type string|int, array given', fn () => (fn ($f) => $f([], 'x'))('broadcastToUser'));
        throws(TypeError::class, 'must be of type string|int, null given', fn () => (fn ($f) => $f(null, 'x'))('broadcastToUser'));
        throws(InvalidChannel::class, 'internal', fn () => getChannelUsers('#x'));
        throws(InvalidMessage::class, 'unknown option', fn () => getChannelUsers('x', ['except' => 1]));
    });

    test('a user who left is not listed', function () use ($connect) {
        $client = $connect('leaves', null, 'leaving');
        same(1, count(getChannelUsers('leaving')));
        $client->drop();
        eventually(fn () => getChannelUsers('leaving') === [], 'the user is gone');
    });

    if ($hub instanceof Realtime\Hub) {
        test('setUser() on a stopped hub is Unavailable', function () use ($hub) {
            $hub->stop();
            throws(Unavailable::class, 'stopped', fn () => $hub->setUser('1.2', 'x'));
        });
    }
});
