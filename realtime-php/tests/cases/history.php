<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\InvalidChannel;
use Tests\Client;

use function Tests\{same, test, throws, with_hub};

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    $offsets = fn (array $page) => array_column($page['messages'], 'offset');

    test('history() gives what is kept, in parts, from either end, since a position', function () use ($offsets) {
        $first = Realtime\publish('h', ['n' => 1.0], 'first');
        Realtime\publish('h', '5');
        Realtime\publish('h', "\xff", options: ['binary' => true]);
        same(
            ['epoch' => $first->epoch, 'offset' => 3, 'complete' => true, 'more' => false, 'messages' => [
                ['event' => 'first', 'data' => ['n' => 1.0], 'offset' => 1],
                ['event' => 'message', 'data' => '5', 'offset' => 2],
                ['event' => 'message', 'base64' => '/w==', 'offset' => 3],
            ]],
            Realtime\history('h'),
        );
        $page = Realtime\history('h', limit: 2, reverse: true);
        same([[3, 2], true], [$offsets($page), $page['more']]);
        $page = Realtime\history('h', since: ['epoch' => $first->epoch, 'offset' => 2]);
        same([[3], true], [$offsets($page), $page['complete']]);
        foreach (['text', '', '00000000000000ff'] as $epoch) {
            $page = Realtime\history('h', since: ['epoch' => $epoch, 'offset' => 2]);
            same([[], false], [$offsets($page), $page['complete']]);
        }
    });

    test('options keep a message out of the history, or end its stay', function () use ($offsets) {
        Realtime\publish('options', 'kept');
        Realtime\publish('options', 'volatile', options: ['history' => false]);
        Realtime\publish('options', 'fleeting', options: ['ttl_ms' => 1]);
        Realtime\batch(function () {
            broadcast('options', 'volatile in a batch', options: ['history' => false]);
            broadcast('options', 'kept in a batch');
        });
        Tests\eventually(fn () => $offsets(Realtime\history('options')) === [1, 5], 'the fleeting one has gone');
        same(true, Realtime\history('options', since: ['epoch' => Realtime\history('options')['epoch'], 'offset' => 1])['complete']);
    });

    test('a client that comes back gets what it has missed', function () use ($hub) {
        $position = Realtime\publish('back', 1);
        Realtime\publish('back', 2);
        $client = new Client($hub->url);
        $client->send(['action' => 'subscribe', 'channel' => 'back', 'recover' => ['epoch' => $position->epoch, 'offset' => $position->offset]]);
        same(true, $client->next('subscribed')['recovered']);
        same(2, $client->next()['data']);
    });

    test('channels without a history, and limits, are checked', function () {
        throws(InvalidChannel::class, 'no policy gives channel `plain` a history', fn () => Realtime\history('plain'));
        throws(InvalidChannel::class, 'empty', fn () => Realtime\history(''));
        foreach ([0, 1001, -1] as $limit) {
            throws(ValueError::class, 'between 1 and 1000', fn () => Realtime\history('h', $limit));
        }
        foreach ([1, 1000] as $limit) {
            Realtime\history('h', $limit);
        }
        throws(ValueError::class, '`epoch` and `offset`', fn () => Realtime\history('h', since: ['offset' => 1]));
    });
}, ['channels' => [['match' => 'plain'], ['match' => '*', 'history' => ['size' => 10]]]]);
